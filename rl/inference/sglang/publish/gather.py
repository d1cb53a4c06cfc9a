"""One request to each of several servers."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rl.inference.engine import EngineError


async def each(urls: Sequence[str], ask: Callable[[str], Awaitable[Any]]) -> dict[str, EngineError]:
    """Asks all servers at once, waits for all, and returns what failed where. Other errors are raised."""
    answers = await asyncio.gather(*(ask(url) for url in urls), return_exceptions=True)
    failures = {}
    for url, answer in zip(urls, answers, strict=True):
        if isinstance(answer, EngineError):
            failures[url] = answer
        elif isinstance(answer, BaseException):
            raise answer
    return failures
