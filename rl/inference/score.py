"""Log-probabilities of given tokens: what a model would have thought of a text that it did not write."""

import asyncio
from collections.abc import Sequence

import jax
import numpy as np

from rl.data.pack import Segment, pack
from rl.models.base import Model, Params
from rl.trainer.update import make_score

SHORTEST = 16
"""Texts are padded to this times a power of two, so that few programs are compiled."""


class Scorer:
    """Scores texts, one at a time, with the trainer's own forward pass.

    It holds the parameters as the trainer has them, besides the engine's, which are laid out for drawing.

    Args:
        model: the decoder.
        params: its parameters.
    """

    def __init__(self, model: Model, params: Params) -> None:
        score = make_score(model)
        self._score = jax.jit(lambda params, batch: score(params, batch, 1.0).logprobs)
        self._params = params
        self._one = asyncio.Lock()

    async def __call__(self, ids: Sequence[int]) -> list[float]:
        """The log-probability of every token but the first, given those before it, at temperature 1."""
        async with self._one:
            return await asyncio.to_thread(self._scored, list(ids))

    def load(self, params: Params) -> None:
        """Scores with other parameters from the next text on."""
        self._params = params

    def _scored(self, ids: list[int]) -> list[float]:
        length = SHORTEST
        while length < len(ids):
            length *= 2
        batch = pack([Segment(ids, [True] * len(ids), [0.0] * len(ids))], length, 1)
        logprobs: list[float] = np.asarray(self._score(self._params, batch))[0, 1 : len(ids)].tolist()
        return logprobs
