"""`rl eval`."""

import sys
from collections.abc import Sequence

from rl.cli.launch import launch


def run(arguments: Sequence[str]) -> int:
    """Run the verb with what follows it on the command line; returns the exit code."""
    return launch("eval", arguments)


if __name__ == "__main__":
    from rl.cli.main import main

    sys.exit(main(["eval", *sys.argv[1:]]))
