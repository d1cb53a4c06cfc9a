"""`rl view RUN`: a run's rollouts on the terminal."""

import sys
from collections.abc import Sequence

from envs.errors import ConfigError
from rl.cli.launch import Parser

HELP = """\
Look at a run's rollouts: turns, tokens, log-probabilities, rewards, failures.

usage: rl view RUN [CONDITION …] [--search TEXT] [--list] [--show N]

  RUN            a run's directory, its name below runs/, or a journal (evals/eval.jsonl)
  CONDITION      reward<0.5, exact_match=1, tokens>100, stop=length, task=ID, where=evals/before, failed, scored
  --search TEXT  only rollouts that hold this text
  --list         print the list instead of browsing it (so it is without a terminal)
  --limit N      rollouts in the list, by default 50
  --show N       print rollout number N
  --tokens       with every token's id and log-probability

keys: arrows or j k, Page Up and Down, Enter opens, n p next and previous, t tokens, / searches, f filters, q leaves

examples:
  rl view runs/NAME
  rl view runs/NAME 'reward<0.5' --list
  rl view runs/NAME --show 12 --tokens
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb with what follows it on the command line; returns the exit code."""
    parser = Parser(prog="rl view", add_help=False, allow_abbrev=False)
    parser.add_argument("run", nargs="?")
    parser.add_argument("conditions", nargs="*")
    parser.add_argument("--search", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--show", type=int)
    parser.add_argument("--tokens", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    given = parser.parse_intermixed_args(arguments)
    if given.help:
        print(HELP, end="")
        return 0
    if given.run is None:
        raise ConfigError("no run named; expected rl view RUN, for example the directory that `rl eval` printed")

    from rich.console import Console

    from rl.cli.report import directory
    from rl.rollout.saved import saved_rollouts
    from rl.view import page
    from rl.view.rows import Row, select

    saved = saved_rollouts(directory(given.run))
    rows = [Row(number, where, trajectory) for number, (where, trajectory) in enumerate(saved)]
    console = Console()
    if given.show is not None:
        if not 0 <= given.show < len(rows):
            raise ConfigError(f"--show {given.show}; the run has the rollouts 0 to {len(rows) - 1}")
        console.print(page.rollout(rows[given.show], tokens=given.tokens))
    elif given.list or not (sys.stdin.isatty() and sys.stdout.isatty()):
        found = select(rows, given.search, given.conditions)
        console.print(page.table(found[: given.limit]))
        more = f", {len(found) - given.limit:,} more with --limit {len(found)}" if len(found) > given.limit else ""
        print(f"{len(found):,} of {len(rows):,} rollouts{more}")
    else:
        from rl.view.screen import Browser, browse

        browse(Browser(rows, given.search, given.conditions))
    return 0
