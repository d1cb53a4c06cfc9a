"""SGLang's servers as an `Engine`: tokens in, tokens out, over HTTP. Our own server (`rl serve`) is one of them.

A request per sample, not one for a group: measured at 64 in flight (64 tokens each, SGLang on a CPU), one request of 64
prompts took as long as 64 requests, and so did `n=8`, whose samples have names that `abort` cannot know. Alone, each is
answered as soon as it is done. What the samples of a group share is still read once: they go to one server.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext
from typing import Any, Protocol

from envs.errors import ContextLengthError
from rl.inference.engine import EngineBusyError, EngineError, Generation, PauseMode, TokenSampling
from rl.inference.label import Label
from rl.inference.requests import Request, TextOf, check_sampling
from rl.inference.sglang.affinity import Affinity
from rl.inference.sglang.answer import Answer, read
from rl.inference.sglang.drawing import Drawing
from rl.inference.sglang.http import Http, Rejected, Unreachable
from rl.inference.sglang.publish.adapters import Adapters
from rl.inference.sglang.publish.gather import each
from rl.inference.sglang.publish.publisher import PublishError
from rl.inference.sglang.sampling import native
from rl.models.base import Params

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

_ANY = 1 << 30


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


class Publishes(Protocol):
    """Gives weights to servers. `rl.inference.sglang.publish.publisher.Publisher` is one."""

    async def publish(self, params: Params, version: int, urls: Sequence[str]) -> Any: ...

    async def restore(self, url: str) -> None: ...

    async def close(self) -> None: ...


class SglangEngine:
    """Samples on servers.

    What breaks is mended where nothing is lost by it: a completion whose server is gone, or which a publication ended,
    is drawn on by another request, from the tokens whose version is known. Each token counts once.

    Servers do not honour `TokenSampling.seed`, except for our own. Texts to stop at are looked for here, by `text_of`,
    in the tokens as they come. What log-probabilities there are, `rl.inference.sglang.sampling.logprobs` says.

    Args:
        servers: they are closed with the engine.
        publisher: brings weights to them; None: they keep those they have. Closed with the engine.
        http: asks them; closed with the engine.
        adapters: what the publisher brings instead of weights; requests name the newest. None: it brings weights.
        context: the most tokens of a prompt and its completion.
        vocabulary: token ids are below it. SGLang does not survive others.
        text_of: tokens to text, for texts to stop at.
        version: the policy version of the weights the servers have.
        owner: whose they are, as the publisher labels them.
        in_flight: requests under way at once; others wait their turn here.
        max_waiting: those that may; None: any number.
        timeout: seconds that a server may be silent about a request. A completion comes all at once, at its end.
    """

    def __init__(
        self,
        servers: Servers,
        publisher: Publishes | None,
        http: Http,
        *,
        adapters: Adapters | None = None,
        context: int,
        vocabulary: int,
        text_of: TextOf | None = None,
        version: int = 0,
        owner: str = "",
        in_flight: int = 1024,
        max_waiting: int | None = None,
        timeout: float = 1800.0,
    ) -> None:
        self._servers, self._publisher = servers, publisher
        self._context, self._vocabulary, self._text_of = context, vocabulary, text_of
        self._version, self._newest = version, Label(version, owner)
        self._http, self._adapters = http, adapters
        self._timeout = timeout
        self._places, self._waiting, self._max_waiting = asyncio.Semaphore(in_flight), 0, max_waiting
        self._affinity = Affinity()
        self._drawings: dict[str, list[Drawing]] = {}
        self._errands: set[asyncio.Task[Any]] = set()
        self._one = asyncio.Lock()  # publication or other change of versions at a time
        self._changing = False
        self._paused: PauseMode | None = None
        self._closed = False
        servers.on_restart = self._restore

    @property
    def context(self) -> int:
        return self._context

    @property
    def version(self) -> int:
        """The newest policy version that all servers have."""
        return self._version

    async def generate(
        self, prompt_ids: Sequence[int], sampling: TokenSampling, *, request_id: str | None = None
    ) -> Generation:
        async with self._drawing(prompt_ids, sampling, request_id, _nothing, streamed=bool(sampling.stop)) as drawing:
            await self._ended(drawing)
        return drawing.request.generation()

    async def stream(
        self, prompt_ids: Sequence[int], sampling: TokenSampling, *, request_id: str | None = None
    ) -> AsyncIterator[Generation]:
        news = asyncio.Event()
        told = 0
        async with self._drawing(prompt_ids, sampling, request_id, news.set, streamed=True) as drawing:
            assert drawing.task is not None
            drawing.task.add_done_callback(lambda task: news.set())
            while True:
                await news.wait()
                news.clear()
                if drawing.task.done():
                    await self._ended(drawing)
                piece = drawing.request.generation(told)
                told += len(piece.ids)
                if piece.ids or piece.finish_reason is not None:
                    yield piece
                if piece.finish_reason is not None:
                    return

    async def abort(self, request_id: str | None = None) -> None:
        known = self._drawings if request_id is None else {request_id: self._drawings.get(request_id, [])}
        await asyncio.gather(*(self._abort(drawing) for drawings in list(known.values()) for drawing in list(drawings)))

    async def load_weights(self, params: Params, version: int) -> None:
        if self._publisher is None:
            raise EngineError(f"version {version} cannot be published: the engine was made without a publisher")
        async with self._change(version):
            await self._publish(self._publisher, params, version)
            await self._end_older()
            if self._paused is not None:  # publishing ends with going on
                await self._each("/pause_generation", {"mode": self._paused})

    async def relabel(self, version: int) -> None:
        async with self._change(version):
            label = str(self._newest._replace(version=version))
            await self._each("/update_weight_version", {"new_version": label, "abort_all_requests": False})
            if self._adapters is not None:
                self._adapters.relabel(version)

    async def pause(self, mode: PauseMode = "in_place") -> None:
        self._paused = mode
        ending = self._all() if mode == "abort" else []
        for drawing in ending:
            drawing.aborted = True
        await self._each("/pause_generation", {"mode": mode})
        for drawing in ending:
            if drawing.rid is None:  # it waits for its turn, and no server knows of it
                drawing.cancel()

    async def resume(self) -> None:
        self._paused = None
        await self._each("/continue_generation", {})

    async def flush_cache(self) -> None:
        await self._each("/flush_cache", {}, words=True)

    async def health(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed")
        path = "/server_info" if self._paused else "/health"  # SGLang's /health waits for a token
        await asyncio.gather(*(self._http.get(url, path) for url in self._servers.urls))

    async def close(self) -> None:
        self._closed = True
        tasks = [drawing.task for drawing in self._all() if drawing.task is not None]
        for task in (*tasks, *self._errands):
            task.cancel()
        await asyncio.gather(*tasks, *self._errands, return_exceptions=True)
        try:
            if self._publisher is not None:
                await self._publisher.close()
        finally:
            await self._http.close()
            await self._servers.close()

    # One completion

    @asynccontextmanager
    async def _drawing(
        self,
        prompt_ids: Sequence[int],
        sampling: TokenSampling,
        request_id: str | None,
        on_news: Callable[[], None],
        *,
        streamed: bool,
    ) -> AsyncIterator[Drawing]:
        """A completion that is being worked on. Whoever leaves before its end has it aborted."""
        self._check(prompt_ids, sampling)
        name = request_id or uuid.uuid4().hex
        limit = min(sampling.max_tokens, self._context - len(prompt_ids))
        several = len(self._servers.urls) > 1
        key = self._affinity.key(prompt_ids) if several else "all"
        drawing = Drawing(Request(name, tuple(prompt_ids), sampling, limit, on_news), key)
        self._drawings.setdefault(name, []).append(drawing)
        drawing.task = asyncio.create_task(self._draw(drawing, streamed), name=name)
        try:
            yield drawing
        finally:
            if not drawing.task.done():
                drawing.task.cancel()
                await asyncio.gather(drawing.task, return_exceptions=True)
            self._drawings[name].remove(drawing)
            if not self._drawings[name]:
                del self._drawings[name]

    def _check(self, prompt_ids: Sequence[int], sampling: TokenSampling) -> None:
        if self._closed:
            raise EngineError("the engine is closed")
        if not 0 < len(prompt_ids) < self._context:
            raise ContextLengthError(
                f"the prompt has {len(prompt_ids)} tokens, but a prompt needs 1 … {self._context - 1} to leave room in "
                f"the context of {self._context}; shorten the prompt or raise inference.context / model.context"
            )
        check_sampling(sampling, self._vocabulary, max_stop_ids=_ANY, max_biases=_ANY, text_of=self._text_of)
        if strange := [i for i in prompt_ids if not 0 <= i < self._vocabulary]:
            raise ValueError(f"token {strange[0]} in the prompt; the vocabulary has 0 … {self._vocabulary - 1}")
        if self._max_waiting is not None and self._waiting >= self._max_waiting:
            raise EngineBusyError(f"{self._waiting} requests wait for their turn already; try again later")

    async def _ended(self, drawing: Drawing) -> None:
        """Returns once the completion is done; one whose request had to be left alone ends with what it has."""
        assert drawing.task is not None
        await asyncio.wait([drawing.task])
        if drawing.task.cancelled():
            if not drawing.aborted:
                raise EngineError("the engine was closed while requests were under way")
            drawing.request.end("abort")
        else:
            drawing.task.result()

    async def _draw(self, drawing: Drawing, streamed: bool) -> None:
        """Makes requests until the completion is done."""
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
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
            drawing.begin(url, None if self._changing else self._version, adapter)
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
        if drawing.request.on_news is _nothing:
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
        found = read(answer, drawing.url, self._newest)
        return found if drawing.fixed is None else found._replace(versions=[drawing.fixed] * len(found.ids))

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

    # All servers

    @asynccontextmanager
    async def _change(self, version: int) -> AsyncIterator[None]:
        """Whatever is drawn meanwhile has a version that only the end of its request tells."""
        async with self._one:
            self._newest = self._newest._replace(version=max(self._newest.version, version))
            self._changing = True
            for drawing in self._all():
                drawing.settled = None
            try:
                yield
                self._version = version
            finally:
                self._changing = False

    async def _publish(self, publisher: Publishes, params: Params, version: int) -> None:
        """Publishes to all servers; one that goes meanwhile is waited for: it comes back with these weights."""
        for left in reversed(range(TRIES)):
            await self._servers.serving()
            try:
                await publisher.publish(params, version, self._servers.urls)
                return
            except EngineError as error:
                if not left or not _gone(error):
                    raise
            await asyncio.sleep(LONGEST_WAIT_S)

    async def _end_older(self) -> None:
        """Has requests ended that are drawn with an older adapter, unless they may keep it."""
        if self._adapters is None or self._adapters.keep:
            return
        newest = self._adapters.newest
        older = [each for each in self._all() if each.rid is not None and each.adapter is not newest]
        await asyncio.gather(*(self._end(each.url, each.rid) for each in older if each.rid is not None))

    async def _restore(self, url: str) -> None:
        """Gives a server that was started anew the newest weights, and pauses it where all are."""
        if self._publisher is not None:
            await self._publisher.restore(url)
        told: PauseMode | None = None
        while told != self._paused:  # which may change while the server is told
            told = self._paused
            if told is None:
                await self._http.post(url, "/continue_generation", {})
            else:
                await self._http.post(url, "/pause_generation", {"mode": told})

    async def _each(self, path: str, body: Mapping[str, Any], *, words: bool = False) -> None:
        """Asks all servers for what may be asked twice: one that goes meanwhile is asked again once it is back."""
        urls: Sequence[str] = self._servers.urls
        for tries in range(TRIES):
            failures = await each(urls, lambda url: self._http.post(url, path, body, words=words))
            if not failures:
                return
            for error in failures.values():
                if tries == TRIES - 1 or not isinstance(error, Unreachable):
                    raise error
            urls = list(failures)
            await asyncio.sleep(min(WAIT_S * 2.0**tries, LONGEST_WAIT_S))
            await self._servers.serving()

    def _all(self) -> list[Drawing]:
        return [drawing for drawings in self._drawings.values() for drawing in drawings]


def _gone(error: EngineError) -> bool:
    """Whether a publication failed because servers went, and no server refused it."""
    if isinstance(error, PublishError):
        return not error.refused
    return isinstance(error, Unreachable)


def _nothing() -> None:
    """For those who wait for the end only."""


def _meant(error: EngineError) -> Exception:
    """What a failure to draw is to the caller."""
    if not isinstance(error, Rejected):
        return error
    if error.status == 503:
        return EngineBusyError(str(error))
    return ValueError(error.said) if error.status in (400, 422) else error
