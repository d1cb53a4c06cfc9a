"""The in-process engine: continuous batching over fixed slots, one prefill per group, all shapes fixed or bucketed."""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import jax
import numpy as np

from envs.errors import ContextLengthError
from rl.inference.decode import Drawn, Slots, make_decode, make_prefill, new_cache, unstack
from rl.inference.engine import EngineError, Generation, TokenSampling
from rl.inference.sampler import DrawSettings
from rl.models.decoder import Model, Params

SHORTEST_PREFILL = 16
"""Prompt lengths are padded to this times a power of two: a prompt's bucket depends on nothing but itself."""


@dataclass(slots=True, eq=False)
class _Request:
    """One `generate` call on its way through the engine."""

    prompt_ids: tuple[int, ...]
    sampling: TokenSampling
    done: asyncio.Future[Generation]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


class JaxEngine:
    """Samples on the devices of this process.

    Compiled shapes: `slots` rows decode together, `prefill_batch` prompts are read together, prompts are padded to a
    power of two. Nothing else varies, so nothing compiles after each bucket was seen once.

    Args:
        model: the decoder.
        params: its parameters; replaced by `load_weights`.
        slots: sequences decoded at once.
        context: columns of the cache; at most the model's context (the default).
        tokens_per_dispatch: tokens drawn between two looks at the queue.
        prefill_batch: prompts read at once.
        max_stop_ids: most stop tokens a request may name.
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
    ) -> None:
        self._context = model.config.context if context is None else context
        if not 2 <= self._context <= model.config.context:
            raise ValueError(f"context is {context}; expected 2 … {model.config.context}, the model's own")
        self._unstack = jax.jit(lambda p: unstack(model, p))
        self._prefill = jax.jit(make_prefill(model), donate_argnums=1)
        self._decode = jax.jit(make_decode(model, tokens_per_dispatch), donate_argnums=1, static_argnums=3)
        self._params = self._unstack(params)
        self._version = version
        self._cache = new_cache(model, slots, self._context)
        self._slots = _idle_slots(slots, max_stop_ids)
        self._prefill_batch = min(prefill_batch, slots)
        self._running: list[_Request | None] = [None] * slots
        self._waiting: deque[_Request] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._gate = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
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
                f"the engine's context of {self._context}; shorten the prompt or raise inference.context / model.context"
            )
        if len(sampling.stop_ids) > self._slots.stop_ids.shape[1]:
            raise ValueError(f"{len(sampling.stop_ids)} stop ids; at most {self._slots.stop_ids.shape[1]} fit")
        request = _Request(tuple(prompt_ids), sampling, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name="jax-engine")
        try:
            return await request.done
        except asyncio.CancelledError:
            self._drop(request)
            raise

    async def load_weights(self, params: Params, version: int) -> None:
        async with self._gate:
            self._params = self._unstack(params)
            self._version = version

    async def pause(self) -> None:
        await self._gate.acquire()

    async def resume(self) -> None:
        self._gate.release()

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
        self._thread.shutdown()

    def compiled_programs(self) -> int:
        """How many programs were compiled so far; constant in steady state."""
        return sum(f._cache_size() for f in (self._unstack, self._prefill, self._decode))

    async def _work(self) -> None:
        """Runs while there is anything to do; a new task is begun by the next request."""
        loop = asyncio.get_running_loop()
        try:
            await self._gather_burst()
            while self._waiting or any(self._running):
                async with self._gate:
                    self._admit()
                    drawn = await loop.run_in_executor(self._thread, self._dispatch)
                    self._harvest(drawn)
                await asyncio.sleep(0)
        except Exception as error:  # whatever it was, no request may wait for ever
            self._failure = error
            self._fail_all(error)

    async def _gather_burst(self) -> None:
        """Lets callers that start together all queue up, so that groups share a prefill."""
        seen = 0
        while seen < len(self._waiting) < len(self._running):
            seen = len(self._waiting)
            await asyncio.sleep(0)

    def _admit(self) -> None:
        """Moves waiting requests into free slots, reading each distinct prompt once."""
        free = [i for i, request in enumerate(self._running) if request is None]
        groups: dict[tuple[int, ...], list[int]] = {}
        while free and self._waiting:
            request = self._waiting.popleft()
            slot = free.pop(0)
            self._running[slot] = request
            _occupy(self._slots, slot, request.prompt_ids, request.sampling, self._context)
            groups.setdefault(request.prompt_ids[:-1], []).append(slot)
        by_bucket: dict[int, list[tuple[int, ...]]] = {}
        for prompt in groups:
            if prompt:
                by_bucket.setdefault(_bucket(len(prompt), self._context), []).append(prompt)
        for bucket, prompts in by_bucket.items():
            for start in range(0, len(prompts), self._prefill_batch):
                self._read_prompts(bucket, prompts[start : start + self._prefill_batch], groups)

    def _read_prompts(
        self, bucket: int, prompts: list[tuple[int, ...]], groups: dict[tuple[int, ...], list[int]]
    ) -> None:
        tokens = np.zeros((self._prefill_batch, bucket), np.int32)
        nowhere = len(self._running)
        slots = np.full(len(self._running), nowhere, np.int32)
        sources = np.zeros(len(self._running), np.int32)
        filled = 0
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
            for slot in groups[prompt]:
                slots[filled], sources[filled] = slot, row
                filled += 1
        self._cache = self._prefill(self._params, self._cache, tokens, slots, sources)

    def _dispatch(self) -> Drawn:
        """Draws a few tokens for every occupied slot. Runs in the engine's thread; the event loop stays free."""
        settings = self._slots.settings
        truncate = bool(((settings.top_p < 1) | (settings.top_k > 0)).any())
        self._cache, slots, drawn = self._decode(self._params, self._cache, self._slots, truncate)
        self._slots = jax.tree.map(np.array, slots)
        return Drawn(*(np.asarray(a) for a in drawn))

    def _harvest(self, drawn: Drawn) -> None:
        for slot, request in enumerate(self._running):
            if request is None:
                continue
            valid = drawn.valid[:, slot]
            new = drawn.tokens[valid, slot].tolist()
            request.ids += new
            request.logprobs += drawn.logprobs[valid, slot].tolist()
            request.versions += [self._version] * len(new)
            if self._slots.remaining[slot] == 0:
                self._running[slot] = None
                self._slots.settings.top_p[slot], self._slots.settings.top_k[slot] = 1.0, 0
                if not request.done.done():
                    request.done.set_result(_generation(request))

    def _drop(self, request: _Request) -> None:
        """Frees what a cancelled request holds."""
        if request in self._waiting:
            self._waiting.remove(request)
        if request in self._running:
            self._slots.remaining[self._running.index(request)] = 0

    def _fail_all(self, error: BaseException) -> None:
        for request in [*self._waiting, *(r for r in self._running if r is not None)]:
            if not request.done.done():
                request.done.set_exception(EngineError(f"the engine stopped: {type(error).__name__}: {error}"))
        self._waiting.clear()
        self._running = [None] * len(self._running)


def _bucket(length: int, context: int) -> int:
    size = SHORTEST_PREFILL
    while size < length:
        size *= 2
    return min(size, context)


def _idle_slots(slots: int, max_stop_ids: int) -> Slots:
    return Slots(
        tokens=np.zeros(slots, np.int32),
        positions=np.zeros(slots, np.int32),
        remaining=np.zeros(slots, np.int32),
        stop_ids=np.full((slots, max_stop_ids), -1, np.int32),
        settings=DrawSettings(
            temperature=np.ones(slots, np.float32),
            top_p=np.ones(slots, np.float32),
            top_k=np.zeros(slots, np.int32),
            seed=np.zeros(slots, np.uint32),
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
