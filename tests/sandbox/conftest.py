"""The log of the attacks, and where they cannot be made."""

import asyncio
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from envs import ConfigError
from envs.sandbox import Bubblewrap, Limits

LOG = Path(__file__).parents[2] / "runs" / "sandbox_attacks.log"


@pytest.fixture(autouse=True)
def _bubblewrap() -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: the attacks look for users that only root can give to sandboxes")
    if problem := why_not():
        pytest.skip(f"NOT TESTED: {problem}")


@cache
def why_not() -> str:
    """Why there can be no sandbox on this machine, if that is so."""

    async def try_one() -> None:
        await (await Bubblewrap().start(Limits())).close()

    try:
        asyncio.run(try_one())
    except ConfigError as error:
        return str(error)
    return ""


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
