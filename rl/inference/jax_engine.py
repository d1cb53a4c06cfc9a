"""The in-process engine: continuous batching over fixed slots, one prefill per group, all shapes fixed or bucketed.

The slots are cut into lanes, which draw side by side. On a CPU there is a lane per core: XLA spreads one large product
over the cores, but the products of a decode step are too small for that, and 2 lanes of 32 rows drew 1.5 times as fast
as one of 64 (4 layers of width 128, two cores). Elsewhere there is one lane.
"""

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from envs.errors import ContextLengthError
from rl.inference.decode import Cache, Drawn, Slots, make_decode, make_prefill, new_cache, unstack
from rl.inference.engine import EngineError, Generation, TokenSampling
from rl.inference.sampler import DrawSettings
from rl.models.base import Model, Params

SHORTEST_PREFILL = 16
"""Prompt lengths are padded to this times a power of two: a prompt's bucket depends on nothing but itself."""

LEAST_LANE = 16
"""Fewer rows than this are not worth a lane of their own."""


@dataclass(slots=True, eq=False)
class _Request:
    """One `generate` call on its way through the engine."""

    prompt_ids: tuple[int, ...]
    sampling: TokenSampling
    done: asyncio.Future[Generation]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Lane:
    """Slots that decode together.

    Attributes:
        cache: their keys and values.
        slots: what each is doing, on the host.
        running: the request in each.
        free: those without one.
        unread: prompts (without their last token) to be read before the next draw, and the slots that sample from them.
    """

    cache: Cache
    slots: Slots
    running: list[_Request | None]
    free: list[int]
    unread: dict[tuple[int, ...], list[int]] = field(default_factory=dict)


class JaxEngine:
    """Samples on the devices of this process.

    Compiled shapes: the rows of a lane decode together, `prefill_batch` prompts are read together, prompts are padded
    to a power of two. Nothing else varies, so nothing compiles after each bucket was seen once.

    Args:
        model: the decoder.
        params: its parameters; replaced by `load_weights`.
        slots: sequences decoded at once.
        context: columns of the cache; at most the model's context (the default).
        tokens_per_dispatch: tokens drawn between two looks at the queue.
        prefill_batch: prompts read at once.
        max_stop_ids: most stop tokens a request may name.
        version: the policy version of `params`.
        lanes: parts of the slots that draw side by side; must divide `slots`. By default one per core on a CPU, each of
            at least `LEAST_LANE` slots, and one elsewhere. What a request draws depends on the size of the lanes (in
            the last bits), never on which of them it is in.

    Raises:
        ValueError: for a context that the model does not have, or lanes of unequal size.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        *,
        slots: int = 64,
        context: int | None = None,
        tokens_per_dispatch: int = 8,
        prefill_batch: int = 32,
        max_stop_ids: int = 4,
        version: int = 0,
        lanes: int | None = None,
    ) -> None:
        self._context = model.config.context if context is None else context
        if not 2 <= self._context <= model.config.context:
            raise ValueError(f"context is {context}; expected 2 … {model.config.context}, the model's own")
        lanes = _default_lanes(slots) if lanes is None else lanes
        if lanes < 1 or slots % lanes:
            raise ValueError(f"lanes is {lanes}; expected a divisor of the {slots} slots")
        self._unstack = jax.jit(lambda p: unstack(model, p))
        self._prefill = jax.jit(make_prefill(model), donate_argnums=1)
        self._decode = jax.jit(make_decode(model, tokens_per_dispatch), donate_argnums=1, static_argnums=3)
        self._params = self._unstack(params)
        self._version = version
        size = slots // lanes
        self._lanes = [_new_lane(model, size, self._context, max_stop_ids) for _ in range(lanes)]
        self._max_stop_ids = max_stop_ids
        self._prefill_batch = min(prefill_batch, size)
        self._waiting: deque[_Request] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._gate = asyncio.Lock()  # held while tokens are drawn or weights replaced
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

    async def generate(self, prompt_ids: Sequence[int], sampling: TokenSampling) -> Generation:
        await self.health()
        if not 0 < len(prompt_ids) < self._context:
            raise ContextLengthError(
                f"the prompt has {len(prompt_ids)} tokens, but a prompt needs 1 … {self._context - 1} to leave room in "
                f"the engine's context of {self._context}; "
                "shorten the prompt or raise inference.context / model.context"
            )
        if len(sampling.stop_ids) > self._max_stop_ids:
            raise ValueError(f"{len(sampling.stop_ids)} stop ids; at most {self._max_stop_ids} fit")
        request = _Request(tuple(prompt_ids), sampling, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name="jax-engine")
        return await request.done

    async def load_weights(self, params: Params, version: int) -> None:
        async with self._gate:
            self._params = self._unstack(params)
            self._version = version

    async def pause(self) -> None:
        self._resumed.clear()
        async with self._gate:
            pass

    async def resume(self) -> None:
        self._resumed.set()

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
        self._fail_all(EngineError("the engine was closed while requests were waiting"))
        self._threads.shutdown()

    def compiled_programs(self) -> int:
        """How many programs were compiled so far; constant in steady state."""
        return sum(f._cache_size() for f in (self._unstack, self._prefill, self._decode))  # type: ignore[attr-defined]

    async def _work(self) -> None:
        """Runs while there is anything to do; a new task is begun by the next request."""
        loop = asyncio.get_running_loop()
        try:
            await self._gather_burst()
            while self._waiting or any(any(lane.running) for lane in self._lanes):
                await self._resumed.wait()
                async with self._gate:
                    self._admit()
                    busy = [lane for lane in self._lanes if any(lane.running)]
                    drawn = await asyncio.gather(
                        *(loop.run_in_executor(self._threads, self._dispatch, lane) for lane in busy)
                    )
                    for lane, tokens in zip(busy, drawn, strict=True):
                        self._harvest(lane, tokens)
                await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001  whatever it was, no request may wait for ever
            self._failure = error
            self._fail_all(error)

    async def _gather_burst(self) -> None:
        """Lets callers that start together all queue up, so that groups share a prefill."""
        seen, slots = 0, sum(len(lane.running) for lane in self._lanes)
        while seen < len(self._waiting) < slots:
            seen = len(self._waiting)
            await asyncio.sleep(0)

    def _admit(self) -> None:
        """Moves waiting requests into free slots: where their prompt is about to be read, or in the freest lane."""
        while self._waiting and (free := [lane for lane in self._lanes if lane.free]):
            request = self._waiting.popleft()
            if request.done.done():  # cancelled
                continue
            past = request.prompt_ids[:-1]
            lane = min(free, key=lambda lane: (past not in lane.unread, -len(lane.free)))
            slot = lane.free.pop(0)
            lane.running[slot] = request
            lane.unread.setdefault(past, []).append(slot)
            _occupy(lane.slots, slot, request.prompt_ids, request.sampling, self._context)

    def _dispatch(self, lane: _Lane) -> Drawn:
        """Reads new prompts and draws a few tokens for every occupied slot.

        Runs in one of the engine's threads; the event loop stays free.
        """
        by_bucket: dict[int, list[tuple[int, ...]]] = {}
        for prompt in filter(None, lane.unread):
            by_bucket.setdefault(_bucket(len(prompt), self._context), []).append(prompt)
        for bucket, prompts in by_bucket.items():
            for start in range(0, len(prompts), self._prefill_batch):
                self._read_prompts(lane, bucket, prompts[start : start + self._prefill_batch])
        lane.unread.clear()
        settings = lane.slots.settings
        truncate = bool(((settings.top_p < 1) | (settings.top_k > 0)).any())
        lane.cache, slots, drawn = self._decode(self._params, lane.cache, lane.slots, truncate)
        lane.slots = jax.tree.map(np.array, slots)
        host: Drawn = jax.tree.map(np.asarray, drawn)
        return host

    def _read_prompts(self, lane: _Lane, bucket: int, prompts: list[tuple[int, ...]]) -> None:
        tokens = np.zeros((self._prefill_batch, bucket), np.int32)
        nowhere = len(lane.running)
        slots = np.full(len(lane.running), nowhere, np.int32)
        sources = np.zeros(len(lane.running), np.int32)
        filled = 0
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
            for slot in lane.unread[prompt]:
                slots[filled], sources[filled] = slot, row
                filled += 1
        lane.cache = self._prefill(self._params, lane.cache, tokens, slots, sources)

    def _harvest(self, lane: _Lane, drawn: Drawn) -> None:
        counts = drawn.valid.sum(axis=0).tolist()  # a slot's tokens come first, then it idles
        tokens, logprobs = drawn.tokens.T.tolist(), drawn.logprobs.T.tolist()
        for slot, request in enumerate(lane.running):
            if request is None:
                continue
            count = counts[slot]
            request.ids += tokens[slot][:count]
            request.logprobs += logprobs[slot][:count]
            request.versions += [self._version] * count
            cancelled = request.done.done()
            if lane.slots.remaining[slot] == 0 or cancelled:
                lane.running[slot] = None
                lane.free.append(slot)
                lane.slots.remaining[slot] = 0
                lane.slots.settings.top_p[slot], lane.slots.settings.top_k[slot] = 1.0, 0
                if not cancelled:
                    request.done.set_result(_generation(request))

    def _fail_all(self, error: BaseException) -> None:
        running = [request for lane in self._lanes for request in lane.running if request is not None]
        for request in [*self._waiting, *running]:
            if not request.done.done():
                request.done.set_exception(EngineError(f"the engine stopped: {type(error).__name__}: {error}"))
        self._waiting.clear()
        for lane in self._lanes:
            lane.running = [None] * len(lane.running)


def _new_lane(model: Model, size: int, context: int, max_stop_ids: int) -> _Lane:
    return _Lane(
        new_cache(model, size, context), _idle_slots(size, max_stop_ids), running=[None] * size, free=list(range(size))
    )


def _default_lanes(slots: int) -> int:
    if jax.default_backend() != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return next(n for n in range(max(1, min(cores, slots // LEAST_LANE)), 0, -1) if slots % n == 0)


def _bucket(length: int, context: int) -> int:
    size = SHORTEST_PREFILL
    while size < length:
        size *= 2
    return min(size, context)


def _idle_slots(slots: int, max_stop_ids: int) -> Slots:
    def host(value: int, dtype: type[np.generic], *shape: int) -> Any:
        """On the host, where a request writes its slot."""
        return np.full((slots, *shape), value, dtype)

    return Slots(
        tokens=host(0, np.int32),
        positions=host(0, np.int32),
        remaining=host(0, np.int32),
        stop_ids=host(-1, np.int32, max_stop_ids),
        settings=DrawSettings(
            temperature=host(1, np.float32), top_p=host(1, np.float32), top_k=host(0, np.int32), seed=host(0, np.uint32)
        ),
    )


def _occupy(slots: Slots, slot: int, prompt: tuple[int, ...], sampling: TokenSampling, context: int) -> None:
    """Writes a request into its slot; the prompt's last token is the first to be decoded."""
    slots.tokens[slot] = prompt[-1]
    slots.positions[slot] = len(prompt) - 1
    slots.remaining[slot] = min(sampling.max_tokens, context - len(prompt))
    slots.stop_ids[slot] = -1
    slots.stop_ids[slot, : len(sampling.stop_ids)] = sampling.stop_ids
    slots.settings.temperature[slot] = sampling.temperature
    slots.settings.top_p[slot] = sampling.top_p
    slots.settings.top_k[slot] = sampling.top_k
    slots.settings.seed[slot] = np.uint32(sampling.seed & 0xFFFFFFFF)


def _generation(request: _Request) -> Generation:
    stopped = bool(request.ids) and request.ids[-1] in request.sampling.stop_ids
    return Generation(request.ids, request.logprobs, request.versions, "stop" if stopped else "length")
