"""Every policy loss and correction on two tokens of one sequence, value and slope, in numbers worked out by hand.

The old policy gave both tokens a probability of 0.25. The new one gives 0.5 to the first (a ratio of 2) and 0.125 to
the second (0.5); so the sequence's ratio is 1, and its geometric mean too.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.algorithms import losses
from rl.algorithms.base import Loss, Tokens
from rl.algorithms.corrections import mis, opsm, reject, staleness, statistic, tis
from rl.algorithms.covariance import choose_band, choose_largest, covariances
from rl.data.pack import Segment, pack

OLD = np.log(np.array([[0.25, 0.25]], np.float32))
NEW = np.log(np.array([[0.5, 0.125]], np.float32))
LN2 = float(np.log(2.0))


def tokens(logprobs: jax.Array, advantage: float, **other: Any) -> Tokens:
    """Of one sequence; the trainer gave what was sampled `mismatch` more."""
    mask = jnp.ones((1, 2), bool)
    fields: dict[str, Any] = {
        "logprobs": logprobs,
        "old_logprobs": jnp.asarray(OLD),
        "behaviour_logprobs": jnp.asarray(OLD),
        "advantages": jnp.full((1, 2), advantage, jnp.float32),
        "mask": mask,
        "segment_ids": jnp.ones((1, 2), jnp.int32),
        "reference_logprobs": jnp.asarray(OLD),
        "mismatch": jnp.asarray(NEW - OLD),
        "ages": jnp.array([[1.0, 3.0]]),
        "chosen": jnp.array([[True, False]]),
    }
    return Tokens(**{**fields, **other})


@pytest.mark.parametrize(
    ("loss", "advantage", "values", "slopes"),
    [
        (losses.clip, 1.0, [-1.2, -0.5], [0.0, -0.5]),
        (losses.clip, -1.0, [2.0, 0.8], [2.0, 0.0]),
        (partial(losses.clip, dual_clip=1.5), -1.0, [1.5, 0.8], [0.0, 0.0]),
        (partial(losses.clip, level="sequence"), 2.0, [-2.0, -2.0], [-2.0, -2.0]),
        (partial(losses.clip, level="sequence_token"), 2.0, [-2.0, -2.0], [-2.0, -2.0]),
        (losses.reinforce, 2.0, [2 * LN2, 6 * LN2], [-2.0, -2.0]),
        (losses.importance, 3.0, [-6.0, -1.5], [-6.0, -1.5]),
        # a teacher that gives both 0.25 takes ln 2 nats off the first token's advantage, and adds them to the second's
        (partial(losses.distil, distil_weight=2.0), 1.0, [0.7726, -1.1931], [0.7726, -1.1931]),
        (partial(losses.cispo, weight_high=1.5), 1.0, [1.5 * LN2, 1.5 * LN2], [-1.5, -0.5]),
        (partial(losses.cispo, proximity=1.0), 0.0, [2 * LN2 * -LN2, 0.5 * 3 * LN2 * LN2], [2 * LN2, -0.5 * LN2]),
        (losses.sapo, 1.0, [-4 * 0.7310586, -4 * 0.3775407], [-4 * 0.1966119 * 2, -4 * 0.2350037 * 0.5]),
        # exp of the mean of 0.4 (clipped) and -ln 2; only the second token still moves it
        (losses.gmpo, 1.0, [-0.8636, -0.8636], [0.0, -0.8636]),
        (losses.dppo_tv, 1.0, [0.0, 0.5 * 3 * LN2], [0.0, -0.5]),  # it gained 0.25
        (losses.dppo_tv, -1.0, [-2 * LN2, -0.5 * 3 * LN2], [2.0, 0.5]),  # it lost 0.125
        (partial(losses.dppo_tv, weight_high=None), 1.0, [0.0, -0.5], [0.0, -0.5]),
        (losses.dppo_kl, 1.0, [0.0, 0.5 * 3 * LN2], [0.0, -0.5]),  # 0.25 ln 0.5 + 0.75 ln 1.5 = 0.1308
        (losses.dppo_kl, -1.0, [-2 * LN2, -0.5 * 3 * LN2], [2.0, 0.5]),  # 0.25 ln 2 + 0.75 ln (6 / 7) = 0.0577
        (partial(losses.ipo, proximity=1.0), 1.0, [LN2**2, LN2**2 - 0.5], [2 * LN2, -2 * LN2 - 0.5]),
        (partial(losses.dro, proximity=2.0), 0.0, [LN2**2, LN2**2], [2 * LN2, -2 * LN2]),
        (partial(losses.dro, proximity=2.0, level="sequence_sum"), 1.0, [LN2, 3 * LN2], [-1.0, -1.0]),
        (losses.topr, 1.0, [LN2, 3 * LN2], [-1.0, -1.0]),
        (partial(losses.topr, level="token"), -1.0, [-LN2, -0.5 * 3 * LN2], [1.0, 0.5]),
        (losses.vespo, 1.0, [LN2, 3 * LN2], [-1.0, -1.0]),  # on policy as a whole
        (losses.clip_cov, 1.0, [0.0, -0.5], [0.0, -0.5]),
        (losses.kl_cov, 1.0, [LN2 - 2.0, -0.5], [1.0 - 2.0, -0.5]),
    ],
)
def test_losses(loss: Loss, advantage: float, values: list[float], slopes: list[float]) -> None:
    if loss is losses.dppo_kl and advantage < 0:
        loss = partial(loss, divergence_low=0.06)

    def each(logprobs: jax.Array) -> jax.Array:
        return loss(tokens(logprobs, advantage)).loss

    np.testing.assert_allclose(each(jnp.asarray(NEW)), [values], rtol=1e-4, atol=1e-6)
    slope = jax.grad(lambda logprobs: each(logprobs).sum())(jnp.asarray(NEW))
    np.testing.assert_allclose(slope, [slopes], rtol=1e-4, atol=1e-6)


def test_a_sequence_far_off_policy_weighs_little() -> None:
    # w = 2 * 2 = 4, k = 2, lambda = 3: 16 exp(3 - 12) = 0.00197457
    loss = losses.vespo(tokens(jnp.asarray(OLD) + LN2, 1.0))
    np.testing.assert_allclose(loss.metrics["sequence_weight"], [[0.00197457] * 2], rtol=1e-5)


def test_corrections() -> None:
    x = tokens(jnp.asarray(NEW), -1.0)
    expected = {
        "tis": (tis(x, tis_high=1.5), [1.5, 0.5]),
        "tis of the sequence": (tis(x, tis_level="sequence"), [1.0, 1.0]),
        "mis": (mis(x, mis_low=0.6), [2.0, 0.0]),
        "mis, geometric": (mis(x, mis_level="geometric"), [1.0, 1.0]),
        "reject a token": (reject(x, reject_level="token", reject_high=1.9), [0.0, 1.0]),
        "reject for one token": (reject(x, reject_level="all", reject_high=1.9), [0.0, 0.0]),
        "reject the mean": (reject(x, reject_low=0.99, reject_high=1.01), [1.0, 1.0]),
        "reject by k2": (reject(x, reject_by="k2", reject_level="max", reject_low=0.0, reject_high=0.2), [0.0, 0.0]),
        "opsm": (opsm(x, opsm_kl=-0.1), [0.0, 0.0]),
        "opsm for what was good": (opsm(tokens(jnp.asarray(NEW), 1.0), opsm_kl=-0.1), [1.0, 1.0]),
        "staleness": (staleness(x, max_age=2.0), [1.0, 0.0]),
    }
    for name, (found, values) in expected.items():
        np.testing.assert_allclose(found, [values], rtol=1e-5, err_msg=name)


def test_statistics() -> None:
    x = tokens(jnp.asarray(NEW), 1.0)
    expected = {
        "ratio": [2.0, 0.5],
        "k1": [-LN2, LN2],
        "k2": [LN2**2 / 2, LN2**2 / 2],
        "k3": [1.0 - LN2, LN2 - 0.5],
        "k3_reverse": [LN2 - 0.5, 1.0 - LN2],
        "tv": [0.25, 0.125],
        "binary_kl": [0.130812, 0.057673],
    }
    for by, values in expected.items():
        np.testing.assert_allclose(statistic(x, by), [values], rtol=1e-4, err_msg=by)  # type: ignore[arg-type]


def test_the_covariance_of_advantage_and_log_probability() -> None:
    parts = [Segment([0, 1, 2], [False, True, True], [0.0, p, p - 1.0], a, 2) for p, a in ((-1.0, 2.0), (-3.0, -2.0))]
    batch = jax.device_put(pack(parts, row_length=6, rows_multiple=1))
    # log-probabilities -1, -2, -3, -4 around -2.5; advantages 2, 2, -2, -2 around 0
    found = covariances(batch.advantages, batch.behaviour_logprobs, batch.mask)
    np.testing.assert_allclose(found, [[-np.inf, 3.0, 1.0, -np.inf, 1.0, 3.0]])
    largest = choose_largest(batch, chosen_fraction=0.5).chosen
    assert np.asarray(largest).tolist() == [[False, True, False, False, False, True]]
    band = choose_band(batch, chosen_fraction=1.0, covariance_low=0.5, covariance_high=2.0).chosen
    assert np.asarray(band).tolist() == [[False, False, True, False, True, False]]
    assert np.asarray(choose_largest(batch, chosen_fraction=0.0).chosen).sum() == 1
