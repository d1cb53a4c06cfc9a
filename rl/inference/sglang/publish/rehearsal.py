"""Whether a server computes with an adapter what the trainer does, seen before it is trusted with one.

SGLang takes an adapter for other base weights, or with matrices that it leaves out, without complaint. So a server
that is new to a run is first given one that nobody trained: random, and large enough to change what the model thinks.
What it then says of a few tokens is held against the trainer's own forward pass.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from rl.inference.score import SHORTEST, Scorer
from rl.models.base import Model, Params
from rl.models.lora import join, split

EFFECT = 1.0
"""Nats per token by which the adapter is to change the log-probabilities, at least, on average."""

TOLERANCE = 0.1
"""Of its effect, by which a server may differ: bfloat16 takes a tenth of that; an adapter half as strong, all of it."""

LARGEST = 2.0**12


class Rehearsal(NamedTuple):
    """An adapter to try, and what the trainer computes with it.

    Attributes:
        adapter: as `rl.models.lora.split` takes one out.
        ids: the tokens to score.
        logprobs: of all but the first, with the adapter.
        effect: nats per token by which it changes them on average.
    """

    adapter: Params
    ids: list[int]
    logprobs: list[float]
    effect: float

    def difference(self, found: Sequence[float]) -> float:
        """By how many nats per token other log-probabilities of the same tokens differ, on average."""
        return _apart(found, self.logprobs)

    def passes(self, found: Sequence[float]) -> bool:
        return self.difference(found) <= TOLERANCE * self.effect


async def rehearse(model: Model, params: Params) -> Rehearsal:
    """Makes one for the policy that these parameters, among them an adapter, are of."""
    own, frozen = split(params)
    vocabulary = model.config.vocab_size
    ids = [(7919 * number + 13) % vocabulary for number in range(min(SHORTEST, model.config.context))]
    scorer = Scorer(model, params)
    strength, effect, found = 0.0, 0.0, list[float]()
    plain: list[float] | None = None
    adapter = own
    while effect < EFFECT and strength < LARGEST:
        adapter = _random(own, strength)
        scorer.load(join(adapter, frozen))
        found = await scorer(ids)
        plain = found if plain is None else plain
        effect, strength = _apart(found, plain), 2 * strength or 0.25
    return Rehearsal(adapter, ids, found, effect)


def _random(like: Params, strength: float) -> Params:
    """An adapter that adds matrices of about this size, next to weights that are one over the root of their inputs."""
    rng = np.random.default_rng(0)

    def draw(path: tuple[object, ...], leaf: jax.Array) -> jax.Array:
        size = math.prod(leaf.shape[1:-1]) ** -0.5 if path[-1].key == "a" else strength  # type: ignore[attr-defined]
        return jax.device_put((size * rng.normal(size=leaf.shape)).astype(leaf.dtype), leaf.sharding)

    return jax.tree.map_with_path(draw, like)


def _apart(found: Sequence[float], expected: Sequence[float]) -> float:
    return float(np.abs(np.subtract(found, expected)).mean()) if len(found) == len(expected) else math.inf
