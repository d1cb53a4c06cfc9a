"""The clipped surrogate, value and gradient, in numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.algorithms import Algorithm, Outcomes, TokenLoss, dr_grpo, grpo, rloo
from rl.data.pack import Segment, pack
from rl.ops.logprobs import TokenScores
from rl.types import Batch

BEHAVIOUR = -1.0


def one_token(advantage: float, reference: float = 0.0) -> Batch:
    """A prompt token and a sampled one."""
    segment = Segment([1, 2], [False, True], [0.0, BEHAVIOUR], advantage, rollout_tokens=1)
    batch = pack([segment], row_length=2, rows_multiple=1)
    return jax.device_put(batch._replace(reference_logprobs=np.array([[0.0, reference]], np.float32)))


def evaluate(algorithm: Algorithm, ratio: float, batch: Batch) -> tuple[float, float, dict[str, float]]:
    """Loss, its slope in the token's log-probability, and the metrics, for the sampled token of `one_token`."""

    def loss(logprob: jax.Array) -> tuple[jax.Array, TokenLoss]:
        logprobs = jnp.stack([jnp.float32(-3.0), logprob])[None]
        token = algorithm.loss(TokenScores(logprobs, jnp.ones((1, 2))), batch, dict(algorithm.hyper))
        return token.loss[0, 1], token

    (value, token), slope = jax.value_and_grad(loss, has_aux=True)(jnp.float32(BEHAVIOUR + np.log(ratio)))
    return float(value), float(slope), {name: float(metric[0, 1]) for name, metric in token.metrics.items()}


@pytest.mark.parametrize("algorithm", [grpo(), dr_grpo(), rloo()], ids=["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope", "clipped"),
    [
        (2.0, 1.5, -2.4, 0.0, 1.0),  # good and likelier already: clipped at 1.2
        (2.0, 0.5, -1.0, -1.0, 0.0),  # good and less likely: -A r
        (-2.0, 1.5, 3.0, 3.0, 0.0),  # bad and likelier
        (-2.0, 0.5, 1.6, 0.0, 1.0),  # bad and less likely already: clipped at 0.8
        (2.0, 1.0, -2.0, -2.0, 0.0),  # on policy: plain REINFORCE
        (0.0, 1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate(
    algorithm: Algorithm, advantage: float, ratio: float, loss: float, slope: float, clipped: float
) -> None:
    value, found, metrics = evaluate(algorithm, ratio, one_token(advantage))
    assert (value, found) == (pytest.approx(loss, rel=1e-6), pytest.approx(slope, rel=1e-6))
    assert metrics["clip_fraction"] == clipped
    assert metrics["mismatch/abs"] == pytest.approx(abs(np.log(ratio)), rel=1e-6)
    assert metrics["mismatch/k1"] == pytest.approx(-np.log(ratio), rel=1e-6)
    assert metrics["mismatch/k3"] == pytest.approx(ratio - 1 - np.log(ratio), rel=1e-6, abs=1e-9)
    assert "kl_reference" not in metrics


def test_the_bounds_are_separate() -> None:
    algorithm = grpo(clip_low=0.1, clip_high=0.4)
    assert evaluate(algorithm, 1.3, one_token(1.0))[:2] == (pytest.approx(-1.3), pytest.approx(-1.3))
    assert evaluate(algorithm, 1.5, one_token(1.0))[:2] == (pytest.approx(-1.4), 0.0)
    assert evaluate(algorithm, 0.8, one_token(-1.0))[:2] == (pytest.approx(0.9), 0.0)


def test_bounds_come_from_the_traced_hyper_parameters() -> None:
    algorithm = grpo()._replace(hyper={"clip_low": 0.5, "clip_high": 0.5, "kl_weight": 0.0})
    assert evaluate(algorithm, 1.4, one_token(1.0))[0] == pytest.approx(-1.4)


@pytest.mark.parametrize(
    ("estimator", "kl", "slope"), [("k1", 0.5, 1.0), ("k2", 0.125, 0.5), ("k3", 0.1065307, 0.3934693)]
)
def test_the_reference_term_is_added(estimator: str, kl: float, slope: float) -> None:
    algorithm = grpo(kl_weight=0.1, kl_estimator=estimator)  # type: ignore[arg-type]
    assert algorithm.needs_reference and not grpo().needs_reference
    value, found, metrics = evaluate(algorithm, 1.0, one_token(2.0, reference=-1.5))
    assert metrics["kl_reference"] == pytest.approx(kl, rel=1e-6)
    assert (value, found) == (pytest.approx(-2.0 + 0.1 * kl), pytest.approx(-2.0 + 0.1 * slope))


def test_tokens_outside_the_mask_may_hold_anything() -> None:
    batch = one_token(1.0)._replace(
        behaviour_logprobs=jnp.array([[jnp.nan, BEHAVIOUR]]), reference_logprobs=jnp.array([[jnp.inf, -1.0]])
    )
    algorithm = grpo(kl_weight=0.1)

    def total(logprobs: jax.Array) -> jax.Array:
        token = algorithm.loss(TokenScores(logprobs, logprobs), batch, dict(algorithm.hyper))
        return jnp.where(batch.mask, token.loss, 0.0).sum()

    value, slopes = jax.value_and_grad(total)(jnp.array([[-jnp.inf, BEHAVIOUR]]))
    assert value == -1.0
    np.testing.assert_array_equal(slopes, [[0.0, -1.0]])


OUTCOMES = Outcomes(np.array([[1.0, 2.0, 3.0, 6.0]]), np.ones((1, 4), bool), np.ones((1, 4), int))


@pytest.mark.parametrize(
    ("algorithm", "advantages"),
    [
        (grpo(), [-0.925820, -0.462910, 0.0, 1.388730]),
        (grpo(normalise_std=False), [-2.0, -1.0, 0.0, 3.0]),
        (dr_grpo(), [-2.0, -1.0, 0.0, 3.0]),
        (rloo(), [-8 / 3, -4 / 3, 0.0, 4.0]),
    ],
    ids=["grpo", "grpo without std", "dr_grpo", "rloo"],
)
def test_credit(algorithm: Algorithm, advantages: list[float]) -> None:
    np.testing.assert_allclose(algorithm.credit(OUTCOMES), [advantages], rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("algorithm", "weights"),
    [
        (grpo(), [[0, 0.25, 0, 0.25, 0.25, 0.25]]),
        (grpo(aggregate="sequence_mean"), [[0, 0.5, 0, 1 / 6, 1 / 6, 1 / 6]]),
        (rloo(aggregate="constant", horizon=5), [[0, 0.1, 0, 0.1, 0.1, 0.1]]),
        (dr_grpo(horizon=10), [[0, 0.05, 0, 0.05, 0.05, 0.05]]),
    ],
)
def test_weights(algorithm: Algorithm, weights: list[list[float]]) -> None:
    parts = [Segment([1] * 2, [False, True], [0.0, -1.0], rollout_tokens=1)]
    parts.append(Segment([1] * 4, [False, True, True, True], [0.0, -1.0, -1.0, -1.0], rollout_tokens=3))
    batch = pack(parts, row_length=6, rows_multiple=1)
    found = np.asarray(algorithm.weights(jax.device_put(batch)))
    np.testing.assert_allclose(np.roll(found, 2, axis=1), weights, rtol=1e-6)  # the longer one was packed first
