"""The log of the attacks, and where they cannot be made."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

LOG = Path(__file__).parents[2] / "runs" / "sandbox_attacks.log"


@pytest.fixture(autouse=True)
def _bubblewrap() -> None:
    if os.geteuid() != 0 or shutil.which("bwrap") is None:
        pytest.skip("NOT TESTED: attacks need root and bubblewrap (apt-get install bubblewrap)")


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Writes the log: what was tried, what came of it, how long it took."""
    yield
    reports = [
        report
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.getreports(outcome)
        if isinstance(report, pytest.TestReport) and (report.when == "call" or not report.passed)
    ]
    lines = [f"{r.outcome:8} {r.duration:6.2f} s  {r.nodeid.partition('::')[2]}" for r in reports]
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("\n".join(lines) + "\n")
    terminalreporter.write_line(f"log: {LOG}")
