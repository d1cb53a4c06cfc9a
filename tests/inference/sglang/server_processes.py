"""Processes as the tests look at them."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp

from rl.inference.sglang.server import Launched

LONG_S = 600.0
"""Within which whatever should happen has happened, however busy the machine is."""

Make = Callable[..., Launched]
"""Name and flags to a server that runs `program.py`."""


async def pids(url: str) -> list[int]:
    """The program, its child, and the child's child in another session."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/server_info") as reply:
        found: list[int] = (await reply.json())["pids"]
        return found


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(condition: Callable[[], object]) -> None:
    """Returns once a condition holds."""
    async with asyncio.timeout(LONG_S):
        while not condition():
            await asyncio.sleep(0.01)


async def gone(*those: int, within: float = LONG_S) -> bool:
    """Whether processes end in time."""
    end = time.monotonic() + within
    while any(map(alive, those)) and time.monotonic() < end:
        await asyncio.sleep(0.05)
    return not any(map(alive, those))
