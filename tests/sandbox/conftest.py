"""Sandboxes for the attacks, and what has to be true of the machine afterwards."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from envs.sandbox.base import Limits, Sandbox
from envs.sandbox.bubblewrap import Bubblewrap

SMALL = Limits(wall=5, cpu=3, memory=2**28, processes=32, disk=2**25, files=2000, output=2**14, deadline=120)

Start = Callable[..., Awaitable[Sandbox]]


def strangers() -> set[tuple[str, str]]:
    """Processes of users that only sandboxes have: (pid, command)."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "status").read_text() if entry.name.isdigit() else ""
        except OSError:
            continue
        if "\nUid:\t2000" in status:
            found.add((entry.name, status.split("\n", 1)[0]))
    return found


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Starts sandboxes; all are closed at the end, after which nothing of them may be left."""
    opened: list[Sandbox] = []

    async def begin(limits: Limits = SMALL) -> Sandbox:
        opened.append(await Bubblewrap().start(limits))
        return opened[-1]

    yield begin
    for sandbox in opened:
        await sandbox.close()
    assert strangers() == set()
    assert "upswing" not in Path("/proc/mounts").read_text()


@pytest_asyncio.fixture
async def sandbox(start: Start) -> Sandbox:
    return await start()


@pytest.fixture
def python() -> Callable[[str], list[str]]:
    """The command that runs Python code."""
    return lambda code: ["python3", "-c", code]
