"""What every benchmark says about itself: the machine, the versions, one JSON object as the last line."""

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The machine a number was measured on: processor, usable cores, memory in GiB, operating system, Python."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each package.

    Raises:
        importlib.metadata.PackageNotFoundError: if one is not installed.
    """
    return {package: metadata.version(package) for package in packages}


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


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
