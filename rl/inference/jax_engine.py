"""The in-process engine: continuous batching over fixed slots, prompts read in pieces and once, all shapes bucketed.

The slots are cut into lanes, which draw side by side. On a CPU there is a lane per core: XLA spreads one large product
over the cores, but the products of a decode step are too small for that, and 2 lanes of 32 rows drew 1.5 times as fast
as one of 64 (4 layers of width 128, two cores). Elsewhere there is one lane.
"""

import asyncio
import os
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from envs.errors import ContextLengthError
from rl.inference.engine import EngineBusyError, EngineError, Generation, PauseMode, TokenSampling
from rl.inference.lane import Lane, Programs
from rl.inference.layers import make_unstack
from rl.inference.placement import cache_sharding
from rl.inference.requests import Request, TextOf, check_sampling
from rl.models.base import Model, Params
from rl.models.lora import dense
from rl.models.replay import expert_layers

LEAST_LANE = 16
"""Fewer rows than this are not worth a lane of their own."""


class JaxEngine:
    """Samples on the devices of this process.

    Compiled shapes: the rows of a lane decode together; pieces of prompts are padded to a power of two, and so are the
    columns they look at; the cache has as many columns as the longest sequence needs, in steps of four times as many.
    Nothing else varies, so nothing compiles after each bucket was seen once.

    Args:
        model: the decoder.
        params: its parameters; replaced by `load_weights`. Where they lie on several devices, so does the cache, with
            its kv heads as they have theirs.
        slots: sequences decoded at once.
        context: the most tokens of a prompt and its completion; at most the model's context (the default).
        tokens_per_dispatch: tokens drawn between two looks at the queue.
        chunk: the most tokens of a prompt that are read at once, and about how many tokens of prompts are read
            together; longer prompts are read in pieces between which others draw.
        exact: what a request draws depends on nothing but itself, bit for bit: the cache always has room for the whole
            context, and a prompt is read from its beginning unless the very same one was read already. Otherwise
            requests begin with whatever tokens they share with others before or beside them, and short sequences do
            not pay for long ones; log-probs then agree to about 1e-5.
        max_stop_ids: most stop tokens a request may name.
        max_biases: most tokens a request may bias.
        max_waiting: most requests that may wait for a slot; None: any number.
        text_of: tokens to text, for requests with stop strings.
        version: the policy version of `params`.
        lanes: parts of the slots that draw side by side; must divide `slots`. By default one per core on a CPU, each of
            at least `LEAST_LANE` slots; one elsewhere, and for parameters on several devices. What a request draws
            depends on the size of the lanes (in the last bits), never on which of them it is in.
        record_routing: tell of each generation which experts its tokens went through, as it was when its cache was
            computed: also of a prompt's tokens that were read for another request, or under earlier weights.

    Raises:
        ValueError: for a context that the model does not have, lanes of unequal size, or routing without experts.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        *,
        slots: int = 64,
        context: int | None = None,
        tokens_per_dispatch: int = 8,
        chunk: int = 256,
        exact: bool = False,
        max_stop_ids: int = 8,
        max_biases: int = 64,
        max_waiting: int | None = None,
        text_of: TextOf | None = None,
        version: int = 0,
        lanes: int | None = None,
        record_routing: bool = False,
    ) -> None:
        self._context = model.config.context if context is None else context
        if not 2 <= self._context <= model.config.context:
            raise ValueError(f"context is {context}; expected 2 … {model.config.context}, the model's own")
        sharding = cache_sharding(model, params)
        lanes = (_default_lanes(slots) if sharding is None else 1) if lanes is None else lanes
        if lanes < 1 or slots % lanes:
            raise ValueError(f"lanes is {lanes}; expected a divisor of the {slots} slots")
        if record_routing and not expert_layers(model):
            raise ValueError("which experts tokens go through is to be recorded, but the model has no experts")
        on_cpu = jax.default_backend() == "cpu"
        self._unstack = jax.jit(make_unstack(model, turn=on_cpu and sharding is None))
        self._programs = Programs(model, tokens_per_dispatch, sharding, record_routing)
        self._params = self._unstack(params)
        self._version = version
        self._lanes = [
            Lane(
                model,
                self._programs,
                slots // lanes,
                context=self._context,
                tokens_per_dispatch=tokens_per_dispatch,
                chunk=chunk,
                exact=exact,
                max_stop_ids=max_stop_ids,
                max_biases=max_biases,
            )
            for _ in range(lanes)
        ]
        self._slots = slots
        self._limits = {"max_stop_ids": max_stop_ids, "max_biases": max_biases}
        self._vocabulary = model.config.vocab_size
        self._max_waiting = max_waiting
        self._text_of = text_of
        self._waiting: deque[Request] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._gate = asyncio.Lock()  # held while tokens are drawn, or what is drawn for or with is changed
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="engine")
        self._failure: BaseException | None = None
        self._closed = False

    @property
    def context(self) -> int:
        return self._context

    @property
    def version(self) -> int:
        """The policy version tokens are sampled with now."""
        return self._version

    async def generate(
        self, prompt_ids: Sequence[int], sampling: TokenSampling, *, request_id: str | None = None
    ) -> Generation:
        ended = asyncio.Event()

        def on_news() -> None:
            if request.finish_reason is not None:
                ended.set()

        request = await self._submit(prompt_ids, sampling, request_id, on_news)
        try:
            await ended.wait()
        finally:
            request.unwanted = True
        await self._raise_failure_of(request)
        return request.generation()

    async def stream(
        self, prompt_ids: Sequence[int], sampling: TokenSampling, *, request_id: str | None = None
    ) -> AsyncIterator[Generation]:
        news = asyncio.Event()
        request = await self._submit(prompt_ids, sampling, request_id, news.set)
        told = 0
        try:
            while True:
                await news.wait()
                news.clear()
                await self._raise_failure_of(request)
                piece = request.generation(told)
                told += len(piece.ids)
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            request.unwanted = True

    async def abort(self, request_id: str | None = None) -> None:
        async with self._gate:
            self._abort(request_id)

    async def load_weights(self, params: Params, version: int) -> None:
        async with self._gate:
            self._params = self._unstack(dense(params))
            self._version = version
            for lane in self._lanes:
                lane.forget()

    async def relabel(self, version: int) -> None:
        async with self._gate:
            self._version = version

    async def pause(self, mode: PauseMode = "in_place") -> None:
        self._resumed.clear()
        async with self._gate:
            if mode == "abort":
                self._abort(None)
            elif mode == "retract":
                for lane in self._lanes:
                    self._waiting.extendleft(reversed(lane.retract()))

    async def resume(self) -> None:
        self._resumed.set()

    async def flush_cache(self) -> None:
        async with self._gate:
            for lane in self._lanes:
                lane.forget()

    async def health(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed")
        if self._failure is not None:
            raise EngineError(f"the engine stopped: {type(self._failure).__name__}: {self._failure}") from self._failure

    async def close(self) -> None:
        self._closed = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._threads.shutdown()  # waits for what is being drawn
        self._failure = self._failure or EngineError("the engine was closed while requests were waiting")
        self._abort(None)

    def compiled_programs(self) -> int:
        """How many programs were compiled so far; constant in steady state."""
        return self._unstack._cache_size() + self._programs.compiled  # type: ignore[attr-defined]

    async def _submit(
        self,
        prompt_ids: Sequence[int],
        sampling: TokenSampling,
        request_id: str | None,
        on_news: Callable[[], None],
    ) -> Request:
        await self.health()
        if not 0 < len(prompt_ids) < self._context:
            raise ContextLengthError(
                f"the prompt has {len(prompt_ids)} tokens, but a prompt needs 1 … {self._context - 1} to leave room in "
                f"the engine's context of {self._context}; "
                "shorten the prompt or raise inference.context / model.context"
            )
        check_sampling(sampling, self._vocabulary, text_of=self._text_of, **self._limits)
        if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
            raise EngineBusyError(f"{len(self._waiting)} requests wait for a slot already; try again later")
        limit = min(sampling.max_tokens, self._context - len(prompt_ids))
        request = Request(request_id or uuid.uuid4().hex, tuple(prompt_ids), sampling, limit, on_news)
        self._waiting.append(request)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name="jax-engine")
        return request

    async def _work(self) -> None:
        """Runs while there is anything to do; a new task is begun by the next request."""
        loop = asyncio.get_running_loop()
        try:
            await self._gather_burst()
            while self._waiting or any(lane.busy for lane in self._lanes):
                await self._resumed.wait()
                async with self._gate:
                    if not self._resumed.is_set():
                        continue
                    self._admit()
                    busy = [lane for lane in self._lanes if lane.busy]
                    drawn = await asyncio.gather(
                        *(loop.run_in_executor(self._threads, lane.dispatch, self._params) for lane in busy)
                    )
                    for lane, tokens in zip(busy, drawn, strict=True):
                        lane.harvest(tokens, self._version, self._text_of)
                await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001  whatever it was, no request may wait for ever
            self._failure = error
            self._abort(None)

    async def _gather_burst(self) -> None:
        """Lets callers that start together all queue up, so that groups share a prefill."""
        seen = 0
        while seen < len(self._waiting) < self._slots:
            seen = len(self._waiting)
            await asyncio.sleep(0)

    def _admit(self) -> None:
        """Moves waiting requests into free slots: where their prompt is about to be read, or in the freest lane."""
        for lane in self._lanes:
            lane.sweep()
        while self._waiting and (free := [lane for lane in self._lanes if lane.free]):
            request = self._waiting.popleft()
            if request.over:
                continue
            best = free[0] if len(free) == 1 else max(free, key=lambda lane: (lane.shares(request), lane.free))
            best.place(request)

    def _abort(self, request_id: str | None) -> None:
        for request in [*self._waiting, *(request for lane in self._lanes for request in lane.requests)]:
            if request_id in (None, request.id):
                request.end("abort")
        self._waiting = deque(request for request in self._waiting if not request.over)
        for lane in self._lanes:
            lane.sweep()

    async def _raise_failure_of(self, request: Request) -> None:
        if request.finish_reason == "abort" and self._failure is not None:
            error = self._failure
            raise EngineError(f"the engine stopped: {type(error).__name__}: {error}") from error


def _default_lanes(slots: int) -> int:
    if jax.default_backend() != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return next(n for n in range(max(1, min(cores, slots // LEAST_LANE)), 0, -1) if slots % n == 0)
