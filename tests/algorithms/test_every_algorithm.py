"""What may not matter to any algorithm, and what none may be upset by. New ones are found by listing.

The losses alone, without a model: `tests/trainer/test_update.py` holds some of them to the same inside the update.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.algorithms import ALGORITHMS, Algorithm
from rl.algorithms.components import Component, with_components
from rl.algorithms.compose import specialised
from rl.algorithms.corrections import CORRECTIONS
from rl.data.pack import Segment, pack
from rl.ops.logprobs import TokenScores
from rl.types import Batch

VERSION = 7
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ALGORITHMS},
    **{f"grpo+{correction}": ("grpo", {"correction": correction}) for correction in CORRECTIONS},
    "grpo+kl": ("grpo", {"kl_weight": 0.1, "kl_estimator": "k3+", "kl_unbiased": True, "entropy_weight": 0.01}),
    "grpo+kl in reward": ("grpo", {"kl_weight": 0.1, "kl_in": "reward"}),
    "grpo+all": ("grpo", {"correction": list(CORRECTIONS)}),
    "clip+dual": ("grpo", {"dual_clip": 3.0, "level": "sequence_token", "aggregate": "sequence_sum"}),
    "gkd, forward": ("gkd", {"divergence": "forward", "tail": "drop"}),
    "gkd, reverse": ("gkd", {"divergence": "reverse", "credit": "group_mean"}),
    "sdft, forward": ("sdft", {"loss": "distil_top_self"}),
    "ppo+kl in reward": ("ppo", {"kl_weight": 0.1, "kl_in": "reward", "value_clip": 0.2}),
    "cispo over sequences": ("cispo", {"level": "sequence_sum", "proximity": 0.1, "aggregate": "token_sum"}),
}


def make(variant: str) -> Algorithm:
    name, settings = VARIANTS[variant]
    factory, taken = specialised(ALGORITHMS[name], settings)
    return factory(**taken)


def sequences(count: int = 10, seed: int = 1) -> list[Segment]:
    """Sequences of 3 to 8 tokens, a third of them part of the rollout before them; token ids are all different."""
    rng = np.random.default_rng(seed)
    parts: list[Segment] = []
    for n in range(count):
        size = int(rng.integers(3, 9))
        mask = [False, True, *(rng.random(size - 2) < 0.6).tolist()]
        logprobs = [float(p) if m else 0.0 for p, m in zip(-2.0 + 0.3 * rng.normal(size=size), mask, strict=True)]
        tokens = list(range(10 * n, 10 * n + size))
        versions = (VERSION - rng.integers(0, 7, size)).tolist()
        parts.append(Segment(tokens, mask, logprobs, float(rng.normal()), sum(mask), n % 3 != 1, versions))
    for one, two in itertools.pairwise(parts):
        if not two.starts_rollout:
            one.rollout_tokens = two.rollout_tokens = sum(one.mask) + sum(two.mask)
            two.advantage = one.advantage
    return parts


def packed(parts: Sequence[Segment], rows: int = 8) -> Batch:
    batch = pack(parts, row_length=16, rows_multiple=rows)
    assert batch.tokens.shape == (rows, 16)
    reference = np.where(batch.mask, batch.behaviour_logprobs + 0.1 * np.sin(batch.tokens), 0.0).astype(np.float32)
    judged = {"values": 0.1 * np.cos(batch.tokens, dtype=np.float32), "returns": np.sin(batch.tokens, dtype=np.float32)}
    return jax.tree.map(jnp.asarray, batch._replace(reference_logprobs=reference, **judged))


def teacher_of(batch: Batch) -> jax.Array:
    """Log-probabilities of two tokens in the place of each; the third of three is left over."""
    logits = [jnp.sin(k * batch.tokens.astype(jnp.float32)) for k in (1.0, 2.0, 3.0)]
    return jax.nn.log_softmax(jnp.stack(logits, axis=-1))[..., :2]


def compared(drift: jax.Array, batch: Batch) -> jax.Array:
    """And those of the policy, which moved from the same."""
    there = batch.tokens.astype(jnp.float32)
    logits = [jnp.sin(k * there) + (k - 2.0) * drift[batch.tokens] for k in (1.0, 2.0, 3.0)]
    return jax.nn.log_softmax(jnp.stack(logits, axis=-1))[..., :2]


def outcome(algorithm: Algorithm, drift: jax.Array, batch: Batch, cut: int = 1) -> tuple[float, np.ndarray]:
    """Loss and gradient by token id, where `drift[id]` is how far the policy has moved since it sampled the token."""
    assert all(isinstance(value, float) for value in algorithm.hyper.values())
    hyper = {name: jnp.float32(value) for name, value in algorithm.hyper.items()} | {"version": jnp.int32(VERSION)}
    if algorithm.top:
        batch = batch._replace(top_ids=jnp.stack([batch.tokens] * 2, axis=-1), top_logprobs=teacher_of(batch))
    whole = algorithm.prepare(batch, hyper)
    weights = algorithm.weights(whole)
    per_row = whole._replace(rollouts=jnp.broadcast_to(whole.rollouts, (len(whole.tokens),)))
    loss, gradient = 0.0, np.zeros(drift.shape, np.float32)
    for rows in np.split(np.arange(len(whole.tokens)), cut):
        part = jax.tree.map(lambda a, rows=rows: a[rows], per_row)._replace(rollouts=whole.rollouts)

        def total(drift: jax.Array, part: Batch = part, weights: jax.Array = weights[rows]) -> jax.Array:
            logprobs = part.behaviour_logprobs + drift[part.tokens]
            values = None if algorithm.critic is None else part.values + drift[part.tokens]
            top = None if part.top_ids is None else compared(drift, part)
            token = algorithm.loss(TokenScores(logprobs, -logprobs, values=values, top_logprobs=top), part, hyper)
            return jnp.where(part.mask, token.loss * weights, 0.0).sum()

        value, slope = jax.value_and_grad(total)(drift)
        loss, gradient = loss + float(value), gradient + np.asarray(slope)
    return loss, gradient


DRIFT = 0.3 * jax.random.normal(jax.random.key(0), (100,))
PARTS = sequences()


@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_packing_nor_cutting_matters(variant: str) -> None:
    algorithm = make(variant)
    loss, gradient = outcome(algorithm, DRIFT, packed(PARTS))
    assert np.isfinite(loss) and np.linalg.norm(gradient) > 1e-4
    moved = [PARTS[i] for i in np.random.default_rng(5).permutation(len(PARTS))]
    for batch, cut in ((packed(moved), 1), (packed(PARTS), 4)):
        again, same = outcome(algorithm, DRIFT, batch, cut)
        assert abs(again - loss) < 2e-6 * max(1.0, abs(loss))
        assert np.linalg.norm(same - gradient) < 2e-6 * np.linalg.norm(gradient)


def different_losses() -> list[str]:
    """Variants of which no other differs in credit and numbers alone."""
    found: dict[str, str] = {}
    for variant, (name, settings) in VARIANTS.items():
        chosen = {**ALGORITHMS[name].chosen, **settings}  # type: ignore[attr-defined]
        settled = {"normalise_std"} | ({"credit"} if make(variant).critic is None else set())
        chosen = {k: v for k, v in chosen.items() if k not in settled and not isinstance(v, float)}
        found.setdefault(str(sorted(chosen.items(), key=str)), variant)
    return list(found.values())


@pytest.mark.parametrize("variant", different_losses())
def test_gradients_stay_finite(variant: str) -> None:
    algorithm = make(variant)
    silent = Segment([95, 96], [False, False], [0.0, 0.0], 1.0, 0)
    extreme = jnp.where(jnp.arange(100) % 2 == 0, 50.0, -50.0)
    for parts, drift in (
        (PARTS, extreme),
        (PARTS, jnp.full(100, 50.0)),
        (PARTS, jnp.full(100, -50.0)),
        ([*PARTS[:4], silent], DRIFT),  # an empty row of rewards
        ([silent, silent], DRIFT),  # nothing to train on
        (PARTS[:1], DRIFT),  # one rollout
    ):
        loss, gradient = outcome(algorithm, drift, packed(parts))
        assert np.isfinite(loss) and np.isfinite(gradient).all()
        if all(part is silent for part in parts):
            assert loss == 0 and (gradient == 0).all()


def parted(parts: Sequence[Segment], *weights: dict[str, float]) -> list[Segment]:
    """The same sequences with weights in the components of the loss; those of a rollout are equal."""
    result, number = [], -1
    for part in parts:
        number += part.starts_rollout
        result.append(dataclasses.replace(part, components=weights[number % len(weights)]))
    return result


@pytest.mark.parametrize("variant", VARIANTS)
def test_as_the_only_component_it_is_itself_to_the_last_digit(variant: str) -> None:
    algorithm = make(variant)
    loss, gradient = outcome(algorithm, DRIFT, packed(PARTS))
    again, same = outcome(with_components(algorithm, ["rl"]), DRIFT, packed(parted(PARTS, {"rl": 1.0})))
    assert again == loss
    np.testing.assert_array_equal(same, gradient)


@pytest.mark.parametrize("variant", different_losses())
def test_beside_other_components_neither_packing_nor_cutting_matters(variant: str) -> None:
    algorithm = make(variant)
    held: list[Component] = ["ref_kl"] if algorithm.privilege is None else []  # a teacher stands there otherwise
    algorithm = with_components(algorithm, ["rl", "ce", *held])
    parts = parted(PARTS, {"rl": 1.0, "ce": 0.0, "ref_kl": 0.1}, {"rl": 0.0, "ce": 0.5, "ref_kl": 0.0})
    loss, gradient = outcome(algorithm, DRIFT, packed(parts))
    for batch, cut in ((packed(parts[::-1]), 1), (packed(parts), 4)):
        again, same = outcome(algorithm, DRIFT, batch, cut)
        assert abs(again - loss) < 2e-6 * max(1.0, abs(loss))
        assert np.linalg.norm(same - gradient) < 2e-6 * np.linalg.norm(gradient)


@pytest.mark.parametrize("variant", different_losses())
def test_the_policy_loss_is_that_of_its_rollouts_alone(variant: str) -> None:
    """Denominators, and whatever else looks at the whole batch, know nothing of the tokens of other components."""
    parts = parted(PARTS, {"rl": 1.0, "ce": 0.0}, {"rl": 0.0, "ce": 1e-30})
    _, alone = outcome(make(variant), DRIFT, packed([part for part in parts if part.components["rl"]]))
    _, beside = outcome(with_components(make(variant), ["rl", "ce"]), DRIFT, packed(parts))
    assert np.linalg.norm(beside - alone) < 2e-6 * np.linalg.norm(alone)
