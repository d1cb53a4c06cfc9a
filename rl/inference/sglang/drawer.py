"""Completions that servers draw: which requests are under way for them, and what is done when one breaks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from rl.inference.engine import EngineBusyError, EngineError
from rl.inference.label import Label
from rl.inference.requests import Request, TextOf
from rl.inference.sglang.answer import Answer, read
from rl.inference.sglang.drawing import Drawing
from rl.inference.sglang.http import Http, Rejected, Unreachable
from rl.inference.sglang.publish.adapters import Adapters
from rl.inference.sglang.publish.gather import each
from rl.inference.sglang.sampling import native

TRIES = 10
"""Requests for one completion that may fail in a row. With the waits between them that is half a minute, within which
whoever keeps the servers has noticed that one is gone, and has the next request wait for its return."""

PASSING = (502, 503, 504)
"""What a server says that has too much to do, and a router that lost one: it was not done, and may be asked again."""

WAIT_S, LONGEST_WAIT_S = 0.2, 5.0

ABORT_S = 3.0
"""A server that is paused does not end a request that waits: after so long we turn our back on it."""

STOP_EVERY = 8
"""Tokens between two looks for texts to stop at."""


class Servers(Protocol):
    """Where requests go. `rl.inference.sglang.fleet.Fleet` is one."""

    on_restart: Callable[[str], Awaitable[None]] | None
    """Gives a server that was started anew its weights."""

    @property
    def urls(self) -> tuple[str, ...]: ...

    async def route(self, key: str) -> tuple[str, Mapping[str, str]]:
        """URL and headers for requests of this key; waits while no server serves."""
        ...

    async def serving(self) -> None:
        """Returns once all servers may be used."""
        ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class Versions:
    """Whose weights the servers have, and of which version.

    Attributes:
        current: the newest version that all servers have.
        newest: the label of the newest that any of them may have.
        changing: it is being published, so that tokens may be of either.
    """

    current: int
    newest: Label
    changing: bool = False


class Drawer:
    """Draws completions, each by as many requests as it takes.

    Args:
        servers: where requests go.
        http: asks them.
        versions: of the weights they have.
        adapters: what requests name, where servers have adapters.
        text_of: tokens to text, for texts to stop at.
        in_flight: requests under way at once; others wait their turn here.
        timeout: seconds that a server may be silent about a request. A completion comes all at once, at its end.
    """

    def __init__(
        self,
        servers: Servers,
        http: Http,
        versions: Versions,
        adapters: Adapters | None,
        *,
        text_of: TextOf | None,
        in_flight: int,
        timeout: float,
    ) -> None:
        self._servers, self._http, self._versions, self._adapters = servers, http, versions, adapters
        self._text_of, self._timeout = text_of, timeout
        self._places, self.waiting = asyncio.Semaphore(in_flight), 0
        self._drawings: dict[str, list[Drawing]] = {}
        self._errands: set[asyncio.Task[Any]] = set()

    def all(self) -> list[Drawing]:
        """Whatever is being worked on."""
        return [drawing for drawings in self._drawings.values() for drawing in drawings]

    @asynccontextmanager
    async def draw(self, request: Request, key: str, *, streamed: bool) -> AsyncIterator[Drawing]:
        """A completion that is being worked on. Whoever leaves before its end has it aborted.

        Args:
            request: what is asked.
            key: requests of one key go to one server.
            streamed: its tokens are wanted as they come.
        """
        name, drawing = request.id, Drawing(request, key)
        self._drawings.setdefault(name, []).append(drawing)
        drawing.task = asyncio.create_task(self._work(drawing, streamed), name=name)
        try:
            yield drawing
        finally:
            if not drawing.task.done():
                drawing.task.cancel()
                await asyncio.gather(drawing.task, return_exceptions=True)
            self._drawings[name].remove(drawing)
            if not self._drawings[name]:
                del self._drawings[name]

    async def ended(self, drawing: Drawing) -> None:
        """Returns once the completion is done; one whose request had to be left alone ends with what it has."""
        assert drawing.task is not None
        await asyncio.wait([drawing.task])
        if drawing.task.cancelled():
            if not drawing.aborted:
                raise EngineError("the engine was closed while requests were under way")
            drawing.request.end("abort")
        else:
            drawing.task.result()

    async def _work(self, drawing: Drawing, streamed: bool) -> None:
        """Makes requests until the completion is done."""
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        try:
            tries = 0
            while drawing.request.finish_reason is None:
                had = len(drawing.request.ids)
                failure = await self._ask(drawing, streamed)
                if drawing.aborted:
                    drawing.request.end("abort")
                tries = 0 if len(drawing.request.ids) > had else tries + 1
                if tries >= TRIES:
                    raise (
                        _meant(failure)
                        if failure
                        else EngineError(f"the server at {drawing.url} ended a request {tries} times, unasked")
                    )
                if failure is not None:
                    await asyncio.sleep(min(WAIT_S * 2.0 ** (tries - 1), LONGEST_WAIT_S))
        finally:
            self._places.release()

    async def _ask(self, drawing: Drawing, streamed: bool) -> EngineError | None:
        """One request for what is still to be drawn; returns why it broke, where another one may be made."""
        url, headers = await self._servers.route(drawing.key)
        with nullcontext() if self._adapters is None else self._adapters.use() as adapter:
            drawing.begin(url, None if self._versions.changing else self._versions.current, adapter)
            return await self._asked(drawing, streamed, url, headers)

    async def _asked(
        self, drawing: Drawing, streamed: bool, url: str, headers: Mapping[str, str]
    ) -> EngineError | None:
        sampling, adapter = drawing.request.sampling, drawing.adapter
        body: dict[str, Any] = {
            "rid": drawing.rid,
            "input_ids": list(drawing.request.tokens),
            "sampling_params": native(sampling, drawing.left, len(drawing.request.ids)),
            "return_logprob": True,
        }
        if adapter is not None:
            body["lora_path"] = adapter.name
        try:
            if streamed:
                await self._follow(drawing, body, headers)
            else:
                answer = await self._http.post(url, "/generate", body, timeout=self._timeout, headers=headers)
                drawing.take(self._read(drawing, answer), self._text_of)
        except Unreachable as error:
            self._let_go(drawing)
            if error.silent:
                raise
            return error
        except Rejected as error:
            # A router says 500 when a server went while it drew. A server's own is for what it cannot do.
            if error.status in PASSING or (error.status == 500 and url not in self._servers.urls):
                return error
            older = self._adapters is not None and adapter is not self._adapters.newest
            if older and adapter is not None and adapter.name in error.said:
                return error  # the server was started anew meanwhile, and has the newest adapter only
            raise _meant(error) from error
        except BaseException:
            self._let_go(drawing)
            raise
        drawing.rid = None
        return None

    async def _follow(self, drawing: Drawing, body: dict[str, Any], headers: Mapping[str, str]) -> None:
        """One request, event by event."""
        url, stopping = drawing.url, False
        body["stream"] = True
        if drawing.request.on_news is nothing:
            body["sampling_params"]["stream_interval"] = STOP_EVERY
        events = self._http.events(url, "/generate", body, timeout=self._timeout, headers=headers)
        async with aclosing(events):
            async for event in events:
                answer = self._read(drawing, event)
                drawing.take(answer, self._text_of)
                if drawing.found is not None and answer.finish is None and not stopping:
                    stopping = True
                    self._let_go(drawing)
                if drawing.request.finish_reason is not None:
                    return

    def _read(self, drawing: Drawing, answer: Any) -> Answer:
        """What a server answered. What it calls its weights says whose they are; an adapter has its own version."""
        found = read(answer, drawing.url, self._versions.newest)
        return found if drawing.fixed is None else found._replace(versions=[drawing.fixed] * len(found.ids))

    async def abort(self, request_id: str | None) -> None:
        """Ends the completions of a request, or all, with what they have."""
        known = self._drawings if request_id is None else {request_id: self._drawings.get(request_id, [])}
        await asyncio.gather(*(self._abort(drawing) for drawings in list(known.values()) for drawing in list(drawings)))

    async def _abort(self, drawing: Drawing) -> None:
        """Ends a completion with what it has, which its server is asked for if it works on it."""
        drawing.aborted = True
        if drawing.rid is not None and drawing.task is not None:
            await self._end(drawing.url, drawing.rid)
            await asyncio.wait([drawing.task], timeout=ABORT_S)
        drawing.cancel()

    def _let_go(self, drawing: Drawing) -> None:
        """Has a server that may still be at a request end it; nobody waits for that."""
        if drawing.rid is not None:
            errand = asyncio.create_task(self._end(drawing.url, drawing.rid))
            self._errands.add(errand)
            errand.add_done_callback(self._errands.discard)

    async def _end(self, url: str, rid: str) -> None:
        """Has a request ended, at whichever server a router sent it to: the router itself knows no such order."""
        urls = [url] if url in self._servers.urls else self._servers.urls
        await each(urls, lambda url: self._http.post(url, "/abort_request", {"rid": rid}, timeout=ABORT_S))
        # One that failed is gone, and works on nothing.

    async def end_older(self) -> None:
        """Has requests ended that are drawn with an older adapter, unless they may keep it."""
        if self._adapters is None or self._adapters.keep:
            return
        newest = self._adapters.newest
        older = [each for each in self.all() if each.rid is not None and each.adapter is not newest]
        await asyncio.gather(*(self._end(each.url, each.rid) for each in older if each.rid is not None))

    async def close(self) -> None:
        """Ends what is under way; whoever waits for it gets an error."""
        tasks = [drawing.task for drawing in self.all() if drawing.task is not None]
        for task in (*tasks, *self._errands):
            task.cancel()
        await asyncio.gather(*tasks, *self._errands, return_exceptions=True)


def nothing() -> None:
    """For those who wait for the end only."""


def _meant(error: EngineError) -> Exception:
    """What a failure to draw is to the caller."""
    if not isinstance(error, Rejected):
        return error
    if error.status == 503:
        return EngineBusyError(str(error))
    return ValueError(error.said) if error.status in (400, 422) else error
