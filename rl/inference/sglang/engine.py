"""SGLang's servers as an `Engine`: tokens in, tokens out, over HTTP. Our own server (`rl serve`) is one of them.

A request per sample, not one for a group: measured at 64 in flight (64 tokens each, SGLang on a CPU), one request of 64
prompts took as long as 64 requests, and so did `n=8`, whose samples have names that `abort` cannot know. Alone, each is
answered as soon as it is done. What the samples of a group share is still read once: they go to one server.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from envs.errors import ContextLengthError
from rl.inference.engine import EngineBusyError, EngineError, Generation, PauseMode, TokenSampling
from rl.inference.label import Label
from rl.inference.requests import Request, TextOf, check_sampling
from rl.inference.sglang.affinity import Affinity
from rl.inference.sglang.drawer import LONGEST_WAIT_S, TRIES, WAIT_S, Drawer, Servers, Versions, nothing
from rl.inference.sglang.http import Http, Unreachable
from rl.inference.sglang.publish.adapters import Adapters
from rl.inference.sglang.publish.gather import each
from rl.inference.sglang.publish.publisher import PublishError
from rl.models.base import Params

_ANY = 1 << 30


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
        self._versions = Versions(version, Label(version, owner))
        self._http, self._adapters = http, adapters
        self._drawer = Drawer(
            servers, http, self._versions, adapters, text_of=text_of, in_flight=in_flight, timeout=timeout
        )
        self._max_waiting = max_waiting
        self._affinity = Affinity()
        self._one = asyncio.Lock()  # publication or other change of versions at a time
        self._paused: PauseMode | None = None
        self._closed = False
        servers.on_restart = self._restore

    @property
    def context(self) -> int:
        return self._context

    @property
    def version(self) -> int:
        """The newest policy version that all servers have."""
        return self._versions.current

    async def generate(
        self, prompt_ids: Sequence[int], sampling: TokenSampling, *, request_id: str | None = None
    ) -> Generation:
        request = self._request(prompt_ids, sampling, request_id, nothing)
        async with self._drawer.draw(request, self._key(prompt_ids), streamed=bool(sampling.stop)) as drawing:
            await self._drawer.ended(drawing)
        return request.generation()

    async def stream(
        self, prompt_ids: Sequence[int], sampling: TokenSampling, *, request_id: str | None = None
    ) -> AsyncIterator[Generation]:
        news = asyncio.Event()
        told = 0
        request = self._request(prompt_ids, sampling, request_id, news.set)
        async with self._drawer.draw(request, self._key(prompt_ids), streamed=True) as drawing:
            assert drawing.task is not None
            drawing.task.add_done_callback(lambda task: news.set())
            while True:
                await news.wait()
                news.clear()
                if drawing.task.done():
                    await self._drawer.ended(drawing)
                piece = request.generation(told)
                told += len(piece.ids)
                if piece.ids or piece.finish_reason is not None:
                    yield piece
                if piece.finish_reason is not None:
                    return

    async def abort(self, request_id: str | None = None) -> None:
        await self._drawer.abort(request_id)

    async def load_weights(self, params: Params, version: int) -> None:
        if self._publisher is None:
            raise EngineError(f"version {version} cannot be published: the engine was made without a publisher")
        async with self._change(version):
            await self._publish(self._publisher, params, version)
            await self._drawer.end_older()
            if self._paused is not None:  # publishing ends with going on
                await self._each("/pause_generation", {"mode": self._paused})

    async def relabel(self, version: int) -> None:
        async with self._change(version):
            label = str(self._versions.newest._replace(version=version))
            await self._each("/update_weight_version", {"new_version": label, "abort_all_requests": False})
            if self._adapters is not None:
                self._adapters.relabel(version)

    async def pause(self, mode: PauseMode = "in_place") -> None:
        self._paused = mode
        ending = self._drawer.all() if mode == "abort" else []
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
        await self._drawer.close()
        try:
            if self._publisher is not None:
                await self._publisher.close()
        finally:
            await self._http.close()
            await self._servers.close()

    def _request(
        self, prompt_ids: Sequence[int], sampling: TokenSampling, request_id: str | None, on_news: Callable[[], None]
    ) -> Request:
        """What is asked, if it can be done."""
        self._check(prompt_ids, sampling)
        limit = min(sampling.max_tokens, self._context - len(prompt_ids))
        return Request(request_id or uuid.uuid4().hex, tuple(prompt_ids), sampling, limit, on_news)

    def _key(self, prompt_ids: Sequence[int]) -> str:
        return self._affinity.key(prompt_ids) if len(self._servers.urls) > 1 else "all"

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
        if self._max_waiting is not None and self._drawer.waiting >= self._max_waiting:
            raise EngineBusyError(f"{self._drawer.waiting} requests wait for their turn already; try again later")

    @asynccontextmanager
    async def _change(self, version: int) -> AsyncIterator[None]:
        """Whatever is drawn meanwhile has a version that only the end of its request tells."""
        async with self._one:
            newest = self._versions.newest
            self._versions.newest = newest._replace(version=max(newest.version, version))
            self._versions.changing = True
            for drawing in self._drawer.all():
                drawing.settled = None
            try:
                yield
                self._versions.current = version
            finally:
                self._versions.changing = False

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


def _gone(error: EngineError) -> bool:
    """Whether a publication failed because servers went, and no server refused it."""
    if isinstance(error, PublishError):
        return not error.refused
    return isinstance(error, Unreachable)
