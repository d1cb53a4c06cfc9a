"""One address in front of several servers: SGLang's router, told by the fleet who is fit to answer."""

import asyncio
import time

import aiohttp

from rl.inference.engine import EngineError
from rl.inference.sglang.server import Launched

KEY = "X-SMG-Routing-Key"
"""Header of a request whose value decides where it goes: the same value, the same server."""

LIVE = "/liveness"
"""What the router answers whether or not it has servers."""

_WITHIN = 30.0


class Router:
    """Servers come and go by `add` and `remove`.

    Args:
        process: runs what `router_command` says, ready and alive by `LIVE`.
    """

    def __init__(self, process: Launched) -> None:
        self.process = process

    async def add(self, url: str) -> None:
        """From here on it gets requests; those of keys that have a server already stay there.

        Raises:
            EngineError: when the router does not take it.
        """
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_WITHIN)) as session:
            await self._ask(session, "POST", "/workers", {"url": url})
            await self._until(session, url, there=True)

    async def remove(self, url: str) -> None:
        """From here on it gets none; its keys find another server. No error when it is not there.

        Raises:
            EngineError: when the router does not let go of it.
        """
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_WITHIN)) as session:
            for worker in await self._workers(session):
                if worker["url"] == url:
                    await self._ask(session, "DELETE", f"/workers/{worker['id']}")
            await self._until(session, url, there=False)

    async def _until(self, session: aiohttp.ClientSession, url: str, *, there: bool) -> None:
        """The router takes its orders at once, and carries them out a little later."""
        end = time.monotonic() + _WITHIN
        while any(worker["url"] == url for worker in await self._workers(session)) != there:
            if time.monotonic() > end:
                did = "take" if there else "let go of"
                raise EngineError(f"the router at {self.process.url} did not {did} {url} within {_WITHIN:.0f} s")
            await asyncio.sleep(0.05)

    async def _workers(self, session: aiohttp.ClientSession) -> list[dict[str, str]]:
        reply: dict[str, list[dict[str, str]]] = await self._ask(session, "GET", "/workers")
        return reply["workers"]

    async def _ask(
        self, session: aiohttp.ClientSession, method: str, path: str, body: dict[str, str] | None = None
    ) -> dict[str, list[dict[str, str]]]:
        try:
            async with session.request(method, self.process.url + path, json=body) as reply:
                if reply.status >= 400:
                    raise EngineError(f"the router answered {reply.status} to {method} {path}: {await reply.text()}")
                found: dict[str, list[dict[str, str]]] = await reply.json()
                return found
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineError(f"the router at {self.process.url} does not answer {method} {path}: {error!r}") from error
