"""What every benchmark says about itself: the machine, the versions, one JSON object as the last line."""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from envs.errors import UpswingError
from rl.machine import machine, versions

__all__ = ["README", "arguments", "emit", "machine", "provenance", "run", "versions", "write_block"]

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The parser that benchmarks share: it has `--append`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--append", action="store_true", help="add the result to benchmarks/results/")
    return parser


def emit(name: str, result: dict[str, Any], append: bool) -> None:
    """Prints the result as one line of JSON, the last of the output; adds it to `results/<name>.jsonl` if asked.

    Args:
        name: of the benchmark.
        result: flat, with dotted keys; must name the parameters, `machine` and `versions`.
        append: whether to keep it.
    """
    line = json.dumps({"benchmark": name, "at": datetime.now(UTC).isoformat(timespec="seconds"), **result})
    if append:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    print(line)
    sys.stdout.flush()


def write_block(path: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- name:begin -->` and `<!-- name:end -->`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, rest = path.read_text("utf-8").split(begin)
    _, tail = rest.split(end)
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}", "utf-8")


def provenance(result: dict[str, Any]) -> str:
    """When and on what a table was measured, and the command: a paragraph below it."""
    found = {n: number for key, value in result.items() if key.endswith("versions") for n, number in value.items()}
    on, day = result["machine"], f"{datetime.now(UTC):%d %B %Y}"
    libraries = ", ".join(f"{name} {number}" for name, number in sorted(found.items()))
    return (
        f"`python {' '.join(sys.argv)}`, {day}; {on['cores']} cores of {on['cpu']}, "
        f"load before it {result['load_1m']}; {libraries}."
    )


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main`; what the user can mend is said without a traceback."""
    try:
        main()
    except UpswingError as error:
        sys.exit(f"error: {error}")
