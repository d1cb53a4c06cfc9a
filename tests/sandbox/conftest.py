"""The log of the attacks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

LOGS = Path(__file__).parents[2] / "runs"


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
    LOGS.mkdir(exist_ok=True)
    log = LOGS / ("docker_attacks.log" if "UPSWING_TEST_IMAGE" in os.environ else "sandbox_attacks.log")
    log.write_text("\n".join(lines) + "\n")
    terminalreporter.write_line(f"log: {log}")
