"""Slots that decode together: their cache, and the compiled programs that carry out what the scheduler plans."""

from array import array
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from rl.inference.cache import Cache, copy_slots, new_cache, resized
from rl.inference.decode import Drawn, Slots, make_decode
from rl.inference.read import Compiled, Pieces, Reader
from rl.inference.requests import Request, TextOf
from rl.inference.scheduler import Copy, Reads, Scheduler, bucket
from rl.inference.slots import idle_slots, occupy, vacate
from rl.models.base import Model, Params
from rl.models.replay import choice_dtype, choice_shape

LEAST_COLUMNS = 256
"""The cache has this times a power of four columns per slot, as many as are needed."""

PATIENCE = 64
"""Dispatches for which fewer columns were enough, before the cache is made smaller."""


class Programs:
    """What is compiled, once for all lanes.

    Args:
        model: the decoder.
        tokens_per_dispatch: tokens drawn at once.
        sharding: where the cache lies; None: on one device.
        record: they tell which experts tokens go through.
    """

    def __init__(
        self, model: Model, tokens_per_dispatch: int, sharding: NamedSharding | None, record: bool = False
    ) -> None:
        only: Any = {} if sharding is None else {"out_shardings": sharding}
        first: Any = {} if sharding is None else {"out_shardings": (sharding, None, None)}
        self.sharding = sharding
        self.record = record
        self.read = Reader(model, sharding, record)
        self.decode: Compiled = jax.jit(make_decode(model, tokens_per_dispatch, record), donate_argnums=1, **first)
        self.copy: Compiled = jax.jit(copy_slots, donate_argnums=0, static_argnums=4, **only)
        self.resize: Compiled = jax.jit(resized, static_argnums=(1, 2), **only)

    @property
    def compiled(self) -> int:
        """How many programs were compiled so far."""
        return sum(f._cache_size() for f in (*self.read.programs, self.decode, self.copy, self.resize))


class Lane:
    """A part of the engine's slots.

    Args:
        model: the decoder.
        programs: what runs.
        size: slots.
        context: the most tokens of a request.
        tokens_per_dispatch: tokens drawn at once.
        chunk: the most tokens of a prompt that are read at once.
        exact: one size of cache, and nothing that depends on what came before (see `Scheduler`).
        max_stop_ids: most stop tokens of a request.
        max_biases: most biased tokens of a request.
    """

    def __init__(
        self,
        model: Model,
        programs: Programs,
        size: int,
        *,
        context: int,
        tokens_per_dispatch: int,
        chunk: int,
        exact: bool,
        max_stop_ids: int,
        max_biases: int,
    ) -> None:
        self._programs = programs
        self._vocabulary = model.config.vocab_size
        self._most = -(-context // 16) * 16
        self._tokens_per_dispatch = tokens_per_dispatch
        self._exact = exact
        self._columns = self._most if exact else min(LEAST_COLUMNS, self._most)
        self._cache = jax.device_put(new_cache(model, size, self._columns), programs.sharding)
        # Beside each column of the cache, on the host: whatever shares keys and values shares what they came from.
        self._experts = (
            np.zeros((size, self._most, *choice_shape(model)), choice_dtype(model)) if programs.record else None
        )
        self._slots = idle_slots(size, self._vocabulary, max_stop_ids, max_biases)
        self._schedule = Scheduler(size, chunk=chunk, columns=self._columns, exact=exact)
        self._roomy = 0

    @property
    def busy(self) -> bool:
        """Whether any slot has a request."""
        return bool(self._schedule.running)

    @property
    def free(self) -> int:
        """Slots without a request."""
        return self._schedule.free

    @property
    def requests(self) -> list[Request]:
        """What its slots work for."""
        return [slot.request for slot in self._schedule.running if slot.request is not None]

    def shares(self, request: Request) -> int:
        """How many tokens of the request lie in its cache, or will."""
        return self._schedule.shares(array("i", request.tokens[:-1]))

    def place(self, request: Request) -> None:
        """Gives a request a free slot."""
        self._schedule.place(request)

    def sweep(self) -> None:
        """Frees the slots of requests that are over."""
        for slot in self._schedule.running:
            if slot.request is not None and slot.request.over:
                self._release(slot.number)

    def retract(self) -> list[Request]:
        """Takes all requests out again, to be read anew, in the order they came."""
        running = sorted(self._schedule.running, key=lambda slot: slot.used)
        requests = [slot.request for slot in running if slot.request is not None]
        for slot in running:
            slot.stale = True
            self._release(slot.number)
        return requests

    def forget(self) -> None:
        """Shares nothing any more of what it has read."""
        self._schedule.forget()

    def dispatch(self, params: Params) -> Drawn:
        """Reads what is to be read and draws a few tokens for every slot that is ready.

        Runs in a thread of the engine's while the event loop stays free.
        """
        self._fit()
        steps, ready = self._schedule.plan()
        for step in steps:
            if isinstance(step, Reads):
                self._read(params, step)
            else:
                self._copy(step)
        for slot in ready:
            assert slot.request is not None
            occupy(self._slots, slot.number, slot.request)
        for slot in self._schedule.slots:
            if not slot.drawing:  # it writes where nothing is kept
                self._slots.positions[slot.number] = len(slot.kept)
        starts = self._slots.positions
        self._cache, slots, drawn = self._programs.decode(params, self._cache, self._slots)
        self._slots = Slots(*jax.tree.map(np.array, tuple(slots)))
        drawn = jax.tree.map(np.asarray, drawn)
        if self._experts is not None:
            for row, count in enumerate(drawn.valid.sum(axis=0)):
                self._experts[row, starts[row] : starts[row] + count] = drawn.experts[:count, row]
        return drawn

    def harvest(self, drawn: Drawn, version: int, text_of: TextOf | None) -> None:
        """Hands drawn tokens to their requests, and frees the slots of those that are over."""
        counts = drawn.valid.sum(axis=0).tolist()  # a slot's tokens come first, then it idles
        ids, logprobs, plain = (values.T.tolist() for values in drawn[:3])
        for slot in self._schedule.running:
            request, count = slot.request, counts[slot.number]
            if request is not None and not request.over and count:
                mine = slice(count)
                if self._experts is not None:
                    read = len(request.prompt) + len(request.ids) + count - 1
                    request.experts.append(self._experts[slot.number, request.routed : read].copy())
                request.take(
                    ids[slot.number][mine], logprobs[slot.number][mine], plain[slot.number][mine], version, text_of
                )
                self._schedule.drew(slot)
        self.sweep()

    def _release(self, number: int) -> None:
        self._schedule.release(self._schedule.slots[number])
        vacate(self._slots, number, self._vocabulary)

    def _fit(self) -> None:
        """Makes the cache as large as it has to be, or smaller where it has been too large for long."""
        if self._exact:
            return
        most = max(len(slot.target) + 1 + len(slot.request.ids) for slot in self._schedule.running if slot.request)
        need = LEAST_COLUMNS
        while need < most + self._tokens_per_dispatch:
            need *= 4
        need = min(need, self._most)
        self._roomy = self._roomy + 1 if need < self._columns else 0
        if need > self._columns or self._roomy > PATIENCE:
            keys = (self._programs.resize(a, need, 3) for a in self._cache.keys)
            values = (self._programs.resize(a, need, 2) for a in self._cache.values)
            self._cache = Cache(tuple(keys), tuple(values))
            self._schedule.cut(need)
            self._columns = need

    def _read(self, params: Params, reads: Reads) -> None:
        tokens = np.zeros((reads.rows, reads.length), np.int32)
        slots, starts = np.zeros(reads.rows, np.int32), np.zeros(reads.rows, np.int32)
        for row in range(reads.rows):
            piece = reads.pieces[row if row < len(reads.pieces) else 0]
            tokens[row, : len(piece.tokens)] = piece.tokens
            slots[row], starts[row] = piece.slot, piece.start
        pieces = Pieces(jnp.asarray(tokens), jnp.asarray(slots), jnp.asarray(starts))
        self._cache, experts = self._programs.read(params, self._cache, pieces, reads.extent)
        if self._experts is not None:
            for piece, each in zip(reads.pieces, np.asarray(experts), strict=False):
                end = piece.start + len(piece.tokens)
                self._experts[piece.slot, piece.start : end] = each[: len(piece.tokens)]

    def _copy(self, copies: list[Copy]) -> None:
        sources, targets = np.zeros((2, len(self._schedule.slots)), np.int32)
        for i, copy in enumerate(copies):
            sources[i], targets[i] = copy.source, copy.target
            if self._experts is not None:
                self._experts[copy.target, : copy.length] = self._experts[copy.source, : copy.length]
        extent = min(bucket(max(copy.length for copy in copies)), self._columns)
        self._cache = self._programs.copy(self._cache, sources, targets, np.int32(len(copies)), extent)
