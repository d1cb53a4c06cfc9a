"""Several servers kept going: watched, started again when they fail, used only with the weights they should have."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, NamedTuple

from envs.errors import UpswingError
from rl.inference.engine import EngineError
from rl.inference.sglang.router import KEY, Router
from rl.inference.sglang.server import Report, Server

OnRestart = Callable[[str], Awaitable[None]]
"""Is given the URL of a server that answers again, with the weights it was launched with, and gives it the newest."""


class Revival(NamedTuple):
    """How a server that failed is started again.

    Attributes:
        restarts: times in a row before the fleet is given up.
        backoff: seconds before the second restart (there is no reason to wait before the first); twice as long before
            each further one.
        longest: what the back-off grows to, in seconds.
        steady: a server that has served for so many seconds counts as sound: the next failure is a first one.
    """

    restarts: int = 5
    backoff: float = 2.0
    longest: float = 60.0
    steady: float = 60.0


class Route(NamedTuple):
    """Where a request goes.

    Attributes:
        url: the router, or a server.
        headers: to send with it.
    """

    url: str
    headers: dict[str, str]


class _Member:
    """A server, and whether it may be used."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.settled = asyncio.Event()  # it serves, or will not any more
        self.serves = False
        self.failure: BaseException | None = None
        self.restarts = 0

    def open(self) -> None:
        self.serves = True
        self.settled.set()

    def shut(self) -> None:
        self.serves = False
        self.settled.clear()

    def give_up(self, failure: BaseException) -> None:
        self.shut()
        self.failure = failure
        self.settled.set()


class Fleet:
    """Keeps servers going from `start` to `close`. To be made and used in one event loop.

    A server that fails (it ends; it hangs) is taken out: `route` does not name it, `serving` waits. It is started
    again, after a while when it keeps failing; `on_restart` gives it the weights it should have; then it is used again.
    When it fails too often in a row, whoever waits for it, or asks for a route, gets one error that says why.

    Args:
        servers: what to keep going.
        router: stands in front of them; without one, `route` chooses the server.
        revival: how failed ones are started again.
        report: is told, in a sentence, how things stand.
        on_restart: gives a server the newest weights; may also be set later. It is called before the server is used
            again, and from the fleet's own task: also while a publication is under way. What it raises as
            `UpswingError`, `ConnectionError` or `TimeoutError` counts as another failure of the server.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        router: Router | None = None,
        revival: Revival = Revival(),
        report: Report = lambda text: None,
        on_restart: OnRestart | None = None,
    ) -> None:
        self.on_restart = on_restart
        self._members = {server.url: _Member(server) for server in servers}
        self._router = None if router is None else _Member(router.process)
        self._membership = router
        self._revival, self._report = revival, report
        self._tasks: list[asyncio.Task[None]] = []
        self._changing = asyncio.Lock()

    @property
    def urls(self) -> tuple[str, ...]:
        """Of the servers themselves, fit to be used or not: weights go to each of them. They never change."""
        return tuple(self._members)

    @property
    def servers(self) -> tuple[Server, ...]:
        return tuple(member.server for member in self._members.values())

    @property
    def restarts(self) -> int:
        """How often a server was started again."""
        return sum(member.restarts for member in self._members.values())

    async def start(self) -> None:
        """Returns once all serve. One that cannot is not tried again, and the others are stopped.

        Raises:
            ConfigError: when a port is taken.
            EngineError: when a server ends, or does not answer in time.
        """
        everyone = [*self._members.values(), *([self._router] if self._router else [])]
        starting = [asyncio.ensure_future(member.server.start(self._report)) for member in everyone]
        try:
            await asyncio.gather(*starting)
            for member in everyone:
                await self._admit(member)
        except BaseException:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await self.close()
            raise
        self._tasks = [asyncio.create_task(self._keep(member)) for member in everyone]

    async def close(self) -> None:
        """Ends the servers that are ours. Whoever waits for one gets an error."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        everyone = [*self._members.values(), *([self._router] if self._router else [])]
        await asyncio.gather(*(member.server.stop() for member in everyone))
        for member in everyone:
            if member.failure is None:
                member.give_up(EngineError(f"{member.server.name} was stopped"))

    async def serving(self, url: str | None = None) -> None:
        """Returns once a server, or every one of them, may be used.

        Raises:
            EngineError: when it failed too often, or was stopped.
        """
        for member in self._members.values() if url is None else [self._members[url]]:
            await _settled(member)

    def is_serving(self, url: str) -> bool:
        """Whether a server may be used now."""
        return self._members[url].serves

    async def route(self, key: str) -> Route:
        """Where the requests of a rollout go: always to the same server, which has read its beginning already, as long
        as that one serves. Waits while none does.

        Args:
            key: names the rollout.

        Raises:
            EngineError: when a server failed too often, or was stopped.
        """
        members = list(self._members.values())
        while True:
            for member in members:
                if member.failure is not None:
                    await _settled(member)
            serving = [member.server.url for member in members if member.serves]
            if serving:
                break
            waiting = [asyncio.ensure_future(member.settled.wait()) for member in members]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
        if self._router is not None:
            await _settled(self._router)
            return Route(self._router.server.url, {KEY: key})
        return Route(highest(key, serving), {})

    async def _keep(self, member: _Member) -> None:
        """Watches over a server for as long as the fleet lives."""
        try:
            failures = 0
            while True:
                since = time.monotonic()
                reason = await member.server.lost()
                member.shut()
                failures = 1 if time.monotonic() - since >= self._revival.steady else failures + 1
                await self._dismiss(member)
                failures = await self._revive(member, f"{member.server.name} {reason}", failures)
                await self._admit(member)
        except Exception as error:  # noqa: BLE001  raised in whoever waits for the server
            member.give_up(error)

    async def _revive(self, member: _Member, reason: str, failures: int) -> int:
        """Starts a server until it answers and has its weights; returns how many times in a row it failed."""
        name = member.server.name
        while True:
            if failures > self._revival.restarts:
                raise EngineError(f"{name} failed {failures} times in a row and is given up; the last time: {reason}")
            wait = self._pause(failures)
            after = f" in {wait:.0f} s" if wait else ""
            self._report(f"{reason}\nbringing {name} back{after}, try {failures} of {self._revival.restarts}")
            await asyncio.sleep(wait)
            try:
                await member.server.start(self._report)
                await self._give_weights(member)
            except UpswingError as error:
                reason, failures = str(error), failures + 1
                continue
            except (ConnectionError, TimeoutError) as error:  # of the hook
                reason, failures = f"{name} could not be given its weights: {error!r}", failures + 1
                continue
            member.restarts += 1
            return failures

    def _pause(self, failures: int) -> float:
        if failures == 1:
            return 0.0
        return min(self._revival.longest, self._revival.backoff * 2.0 ** (failures - 2))

    async def _give_weights(self, member: _Member) -> None:
        """Calls the hook, unless the server fails meanwhile: then nobody might ever answer it."""
        if self.on_restart is None or member is self._router:
            return
        giving = asyncio.ensure_future(self.on_restart(member.server.url))
        losing = asyncio.ensure_future(member.server.lost())
        try:
            await asyncio.wait((giving, losing), return_when=asyncio.FIRST_COMPLETED)
            if not giving.done():
                raise EngineError(f"while {member.server.name} got its weights, it {losing.result()}")
            await giving
        finally:
            for task in (giving, losing):
                task.cancel()
            await asyncio.gather(giving, losing, return_exceptions=True)

    async def _admit(self, member: _Member) -> None:
        """Lets a server be used; a router is told of those that are."""
        async with self._changing:  # or one that comes while the router does would be on nobody's list
            if self._router is None:
                pass
            elif member is self._router:
                await asyncio.gather(*(self._tell("add", url) for url, m in self._members.items() if m.serves))
            elif self._router.serves:
                await self._tell("add", member.server.url)
            member.open()

    async def _dismiss(self, member: _Member) -> None:
        """Takes a server out of the router."""
        async with self._changing:
            if self._router is not None and member is not self._router and self._router.serves:
                await self._tell("remove", member.server.url)

    async def _tell(self, what: Literal["add", "remove"], url: str) -> None:
        """A router that does not do as it is told is ended: it is started again, and told of those that serve then."""
        assert self._membership is not None and self._router is not None
        try:
            await (self._membership.add(url) if what == "add" else self._membership.remove(url))
        except EngineError as error:
            self._report(str(error))
            await self._router.server.stop()


async def _settled(member: _Member) -> None:
    await member.settled.wait()
    if member.failure is not None:
        raise EngineError(f"{member.failure}") from member.failure


def highest(key: str, urls: Sequence[str]) -> str:
    """Rendezvous hashing: the URL with the highest hash together with the key. When one leaves, only its keys move."""
    return max(urls, key=lambda url: hashlib.blake2b(f"{key}\0{url}".encode(), digest_size=8).digest())
