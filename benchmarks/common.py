"""What every benchmark says about itself: the machine, the versions, one JSON object as the last line."""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rl.machine import machine, versions

__all__ = ["arguments", "emit", "machine", "versions"]

RESULTS = Path(__file__).parent / "results"


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
