"""What several servers are asked at once, and what each of them is."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from envs.errors import ConfigError
from rl.inference.engine import EngineError
from rl.inference.sglang.http import Http, Rejected


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


async def parts(http: Http, url: str, publish: str) -> tuple[int, int]:
    """Into how many parts a server has cut each layer, and into how many the layers.

    Raises:
        ConfigError: when it has several copies of the model, which SGLang gives new weights from files only.
    """
    info = await http.get(url, "/server_info")
    if (copies := int(info.get("dp_size") or 1)) > 1:
        raise ConfigError(
            f"the server at {url} has {copies} copies of the model (data_parallel); SGLang gives those new weights "
            f"from files only, not by publish={publish}. Choose publish=disk, or start a server for each copy"
        )
    return int(info.get("tp_size") or 1), int(info.get("pp_size") or 1)


async def begin(http: Http, url: str) -> None:
    """Opens a server for updates of single tensors. It may be open still, for a trainer that was killed meanwhile."""
    try:
        await http.post(url, "/begin_weight_update")
    except Rejected as error:
        if "already open" not in error.said:
            raise
        await http.post(url, "/end_weight_update")
        await http.post(url, "/begin_weight_update")
