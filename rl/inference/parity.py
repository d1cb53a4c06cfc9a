"""How far an engine's numbers are from the trainer's: the same tokens, scored by both."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.errors import UpswingError
from rl.data.pack import Segment, pack
from rl.inference.engine import Engine, TokenSampling
from rl.inference.score import SHORTEST
from rl.models.base import Model, Params
from rl.models.decoder import hidden_states
from rl.trainer.update import make_score
from rl.types import Batch


class Sampled(NamedTuple):
    """A completion, and the log-probabilities that the engine gave its tokens."""

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]


class Position(NamedTuple):
    """Differences at one place of all completions; its tokens were drawn after `position` others."""

    position: int
    tokens: int
    mean_abs: float
    max_abs: float


class Parity(NamedTuple):
    """Differences of log-probabilities, trainer minus engine, in nats.

    Attributes:
        tokens: how many were compared.
        mean_abs: mean absolute difference.
        max_abs: the largest.
        k1: mean of engine minus trainer: estimates KL(engine || trainer), and may be negative.
        k3: mean of `exp(d) - 1 - d`: estimates the same, and is never negative.
        top1: share of greedy tokens that are the trainer's likeliest too.
        positions: the same by place in the completion.
    """

    tokens: int
    mean_abs: float
    max_abs: float
    k1: float
    k3: float
    top1: float
    positions: list[Position]

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {**self._asdict(), "positions": [position._asdict() for position in self.positions]}


async def measure(
    engine: Engine, model: Model, params: Params, prompts: Sequence[Sequence[int]], sampling: TokenSampling
) -> Parity:
    """Samples one completion of each prompt, and a greedy one, and scores both with the trainer's forward pass.

    Args:
        engine: samples with the same weights.
        model: the trainer's.
        params: its parameters.
        prompts: as tokens.
        sampling: for the first of the two; its temperature is positive and it truncates nothing.

    Raises:
        UpswingError: when the engine drew nothing.
    """
    drawn = await _sampled(engine, prompts, sampling)
    greedy = await _sampled(engine, prompts, replace(sampling, temperature=0.0))
    scorer = _Scorer(model, params, sampling.temperature)
    scored = [await asyncio.to_thread(scorer, one) for one in drawn]
    agreed = [await asyncio.to_thread(scorer, one) for one in greedy]
    pairs = zip(agreed, greedy, strict=True)
    likeliest = np.concatenate([top == np.asarray(one.ids) for (_, top), one in pairs])
    return compare(
        [one.logprobs for one in drawn], [logprobs.tolist() for logprobs, _ in scored], float(likeliest.mean())
    )


def compare(engine: Sequence[Sequence[float]], trainer: Sequence[Sequence[float]], top1: float) -> Parity:
    """Compares log-probabilities of the tokens of completions.

    Args:
        engine: per completion, those of its tokens.
        trainer: the same tokens.
        top1: share of greedy tokens that the trainer finds likeliest too.

    Raises:
        UpswingError: when there are none.
    """
    if not any(engine):
        raise UpswingError("the engine drew no token; there is nothing to compare")
    differences = [np.asarray(t, np.float64) - np.asarray(e, np.float64) for e, t in zip(engine, trainer, strict=True)]
    every = np.concatenate(differences)
    positions = []
    for position in range(max(map(len, differences))):
        here = np.abs([one[position] for one in differences if len(one) > position])
        positions.append(Position(position, len(here), float(here.mean()), float(here.max())))
    return Parity(
        tokens=len(every),
        mean_abs=float(np.abs(every).mean()),
        max_abs=float(np.abs(every).max()),
        k1=float(-every.mean()),
        k3=float((np.expm1(every) - every).mean()),
        top1=top1,
        positions=positions,
    )


async def _sampled(engine: Engine, prompts: Sequence[Sequence[int]], sampling: TokenSampling) -> list[Sampled]:
    answers = await asyncio.gather(
        *(engine.generate(prompt, replace(sampling, seed=sampling.seed + n)) for n, prompt in enumerate(prompts))
    )
    return [Sampled(list(prompt), one.ids, one.logprobs) for prompt, one in zip(prompts, answers, strict=True)]


class _Scorer:
    """The trainer's log-probabilities of a completion's tokens, and what it finds likeliest in their places."""

    def __init__(self, model: Model, params: Params, temperature: float) -> None:
        score = make_score(model)

        def both(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
            hidden, _ = hidden_states(model, params, batch.tokens, batch.positions, batch.segment_ids)
            logits = jnp.einsum("RLD,VD->RLV", hidden, model.head(params).astype(hidden.dtype))
            return score(params, batch, temperature).logprobs[0], logits[0].argmax(-1)

        self._both = jax.jit(both)
        self._params = params

    def __call__(self, one: Sampled) -> tuple[np.ndarray, np.ndarray]:
        ids = [*one.prompt_ids, *one.ids]
        length = SHORTEST
        while length < len(ids):
            length *= 2
        batch = pack([Segment(ids, [True] * len(ids), [0.0] * len(ids))], length, 1)
        logprobs, likeliest = map(np.asarray, self._both(self._params, batch))
        first = len(one.prompt_ids)
        return logprobs[first : len(ids)], likeliest[first - 1 : len(ids) - 1]
