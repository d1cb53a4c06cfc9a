"""Policy loss, cross-entropy and divergence in one batch, in numbers. That any algorithm may be the policy loss, and
that packing and cutting do not matter, is in `test_every_algorithm.py`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl.algorithms import ALGORITHMS, grpo
from rl.algorithms.components import with_components
from rl.data.pack import Segment, pack
from rl.ops.logprobs import TokenScores
from rl.trainer.minibatches import make_updates
from rl.trainer.optimizer import Optimizer
from rl.trainer.state import init_state
from rl.types import Batch

DESCENT = Optimizer(lambda hyper: optax.identity(), lambda step, hyper: jnp.ones(()), {"max_grad_norm": 1e9})
PARAMS = jnp.zeros(16).at[jnp.arange(1, 9)].set(-0.25 * jnp.arange(1.0, 9.0))  # of token id n: - n / 4


def score(params: jax.Array, batch: Batch, temperature: Any) -> TokenScores:
    return TokenScores(params[batch.tokens], jnp.ones(batch.tokens.shape))


def rollout(ids: list[int], advantage: float) -> Segment:
    drawn = [0.0, *(-0.25 * n for n in ids)]
    return Segment(
        [0, *ids], [False, *[True] * len(ids)], drawn, advantage, len(ids), components={"rl": 1.0, "ce": 0.0}
    )


def shown(ids: list[int], weight: float = 0.5) -> Segment:
    weights = {"rl": 0.0, "ce": weight}
    return Segment([0, *ids], [False, *[True] * len(ids)], [0.0] * (1 + len(ids)), 0.0, len(ids), components=weights)


def updated(algorithm: Any, *parts: Segment, length: int = 8, rows: int = 4) -> tuple[dict[str, float], np.ndarray]:
    names = list(parts[0].components)
    update = make_updates(score, with_components(algorithm, names), DESCENT, rows)  # type: ignore[arg-type]
    batch = pack(parts, length, 4)
    batch = batch._replace(reference_logprobs=np.where(batch.mask, np.float32(-1.0), np.float32(0.0)))
    hyper = {**algorithm.hyper, **DESCENT.hyper, "temperature": 1.0}
    fast = jax.jit(update, compiler_options={"xla_backend_optimization_level": 0})
    state, metrics = fast(init_state(PARAMS, DESCENT), batch, hyper)
    return {name: float(value) for name, value in metrics.items()}, np.asarray(PARAMS - state.params)


def test_each_component_is_a_mean_over_its_own_tokens() -> None:
    # Three tokens of rollouts with advantages 1 and -2, two of demonstrations with half a weight.
    metrics, slope = updated(grpo(), rollout([1, 2], 1.0), rollout([3], -2.0), shown([4, 5]))
    assert metrics["loss"] == pytest.approx((-1 - 1 + 2) / 3 + 0.5 * (1.0 + 1.25) / 2, rel=1e-6)
    np.testing.assert_allclose(slope[1:6], [-1 / 3, -1 / 3, 2 / 3, -0.25, -0.25], rtol=1e-6)
    assert metrics["cross_entropy"] == pytest.approx(1.125) and metrics["share/ce"] == pytest.approx(2 / 5)
    assert metrics["mismatch/abs"] == metrics["mismatch/max"] == 0, "demonstrations were drawn by nobody"
    assert metrics["entropy"] == 1


def test_more_of_one_component_leaves_the_others_as_they_are() -> None:
    _, few = updated(grpo(), rollout([1, 2], 1.0), rollout([3], -2.0), shown([4, 5]))
    _, many = updated(grpo(), rollout([1, 2], 1.0), rollout([3], -2.0), shown([4, 5]), shown([6, 7, 8, 8, 8, 8]))
    np.testing.assert_array_equal(few[1:4], many[1:4])
    np.testing.assert_allclose(many[4:9], [-1 / 16] * 4 + [-4 / 16], rtol=1e-6)
    for aggregate in ("sequence_mean", "constant"):
        algorithm = ALGORITHMS["grpo"](aggregate=aggregate, horizon=4)
        one, two = (
            updated(algorithm, rollout([1, 2], 1.0), rollout([3], -2.0), *parts)[1]
            for parts in ((shown([4]),), (shown([4]), shown([5]), shown([6, 7])))
        )
        np.testing.assert_array_equal(one[1:4], two[1:4])


def test_the_divergence_from_the_reference_on_the_tokens_of_some() -> None:
    held = Segment([0, 4, 8], [False, True, True], [0.0, 0.0, 0.0], 0.0, 2, components={"rl": 0.0, "ref_kl": 3.0})
    drawn = rollout([1], 1.0)
    drawn.components = {"rl": 1.0, "ref_kl": 0.0}
    metrics, slope = updated(grpo(), drawn, held)
    # Token 4 is as likely as the reference says, token 8 a nat less: k3 = e - 2, its slope 1 - e.
    assert metrics["ref_kl"] == pytest.approx((np.e - 2) / 2, rel=1e-5)
    np.testing.assert_allclose(slope[[1, 4, 8]], [-1.0, 0.0, 3.0 * (1 - np.e) / 2], rtol=1e-5, atol=1e-6)
    assert (
        with_components(grpo(), ["rl", "ref_kl"]).needs_reference
        and not with_components(grpo(), ["rl"]).needs_reference
    )


def test_a_batch_may_lack_a_component() -> None:
    metrics, slope = updated(grpo(), rollout([1, 2], 1.0))
    assert metrics["loss"] == pytest.approx(-1) and metrics["share/ce"] == metrics["cross_entropy"] == 0
    np.testing.assert_allclose(slope[1:3], -0.5)


def test_an_unknown_component_is_named() -> None:
    with pytest.raises(ValueError, match="components are rl, ce, ref_kl; found 'sft'"):
        with_components(grpo(), ["rl", "sft"])  # type: ignore[list-item]
