"""Slots that decode together: their requests, their cache, and the compiled programs run for them."""

from collections.abc import Callable

import jax
import numpy as np

from rl.inference.decode import Cache, Drawn, Slots, new_cache
from rl.inference.requests import Request, TextOf
from rl.inference.slots import idle_slots, occupy, vacate
from rl.models.base import Model, Params

SHORTEST_PREFILL = 16
"""Prompt lengths are padded to this times a power of two: a prompt's bucket depends on nothing but itself."""


class Lane:
    """A part of the engine's slots.

    Args:
        model: the decoder.
        size: slots.
        context: columns of the cache.
        max_stop_ids: most stop tokens of a request.
        max_biases: most biased tokens of a request.
        prefill_batch: prompts read at once.
        prefill: the compiled program that reads them.
        decode: the compiled program that draws.
    """

    def __init__(
        self,
        model: Model,
        size: int,
        context: int,
        *,
        max_stop_ids: int,
        max_biases: int,
        prefill_batch: int,
        prefill: Callable[..., Cache],
        decode: Callable[..., tuple[Cache, Slots, Drawn]],
    ) -> None:
        self._vocabulary = model.config.vocab_size
        self._context = context
        self._cache = new_cache(model, size, context)
        self._slots = idle_slots(size, self._vocabulary, max_stop_ids, max_biases)
        self._prefill_batch = min(prefill_batch, size)
        self._prefill, self._decode = prefill, decode
        self.running: list[Request | None] = [None] * size
        self.free = list(range(size))
        self.unread: dict[tuple[int, ...], list[int]] = {}

    @property
    def busy(self) -> bool:
        return any(self.running)

    def place(self, request: Request) -> None:
        """Gives a request a free slot."""
        slot = self.free.pop(0)
        self.running[slot] = request
        self.unread.setdefault(request.tokens[:-1], []).append(slot)
        occupy(self._slots, slot, request)

    def retract(self) -> list[Request]:
        """Takes all requests out again."""
        taken = [request for request in self.running if request is not None]
        for slot, request in enumerate(self.running):
            if request is not None:
                self._release(slot)
        self.unread.clear()
        return taken

    def dispatch(self, params: Params) -> Drawn:
        """Reads new prompts and draws a few tokens for every occupied slot. Runs in a thread of the engine's."""
        by_bucket: dict[int, list[tuple[int, ...]]] = {}
        for prompt in filter(None, self.unread):
            by_bucket.setdefault(_bucket(len(prompt), self._context), []).append(prompt)
        for bucket, prompts in by_bucket.items():
            for start in range(0, len(prompts), self._prefill_batch):
                self._read_prompts(params, bucket, prompts[start : start + self._prefill_batch])
        self.unread.clear()
        self._cache, slots, drawn = self._decode(params, self._cache, self._slots)
        self._slots = jax.tree.map(np.array, slots)
        host: Drawn = jax.tree.map(np.asarray, drawn)
        return host

    def harvest(self, drawn: Drawn, version: int, text_of: TextOf | None) -> None:
        """Hands drawn tokens to their requests, and frees the slots of those that are over."""
        counts = drawn.valid.sum(axis=0).tolist()  # a slot's tokens come first, then it idles
        ids, logprobs, plain = drawn.tokens.T.tolist(), drawn.logprobs.T.tolist(), drawn.plain_logprobs.T.tolist()
        for slot, request in enumerate(self.running):
            if request is None:
                continue
            count = counts[slot]
            if not request.over:
                request.take(ids[slot][:count], logprobs[slot][:count], plain[slot][:count], version, text_of)
        self.sweep()

    def sweep(self) -> None:
        """Frees the slots of requests that are over."""
        for slot, request in enumerate(self.running):
            if request is not None and request.over:
                self._release(slot)

    def _release(self, slot: int) -> None:
        self.running[slot] = None
        self.free.append(slot)
        for slots in self.unread.values():
            if slot in slots:
                slots.remove(slot)
        vacate(self._slots, slot, self._vocabulary)

    def _read_prompts(self, params: Params, bucket: int, prompts: list[tuple[int, ...]]) -> None:
        tokens = np.zeros((self._prefill_batch, bucket), np.int32)
        nowhere = len(self.running)
        slots = np.full(len(self.running), nowhere, np.int32)
        sources = np.zeros(len(self.running), np.int32)
        filled = 0
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
            for slot in self.unread[prompt]:
                slots[filled], sources[filled] = slot, row
                filled += 1
        self._cache = self._prefill(params, self._cache, tokens, slots, sources)


def _bucket(length: int, context: int) -> int:
    size = SHORTEST_PREFILL
    while size < length:
        size *= 2
    return min(size, context)
