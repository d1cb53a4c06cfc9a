"""Losses that no peer's value pins down, and what all of them share; the others are in tests/golden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.algorithms.distillation import distil, distil_top, divergence, policy_gradient_of_kl
from rl.algorithms.preference import PAIRWISE, dpo, kto, orpo, simpo


def test_by_hand() -> None:
    good, bad = jnp.array([-0.5]), jnp.array([-1.5])
    # beta 2 times 1, less 1: -log sigmoid(1)
    np.testing.assert_allclose(simpo(good, bad), [0.3132617], rtol=1e-6)
    # log odds: ln(0.606531 / 0.393469) = 0.432752 and ln(0.223130 / 0.776870) = -1.247514
    np.testing.assert_allclose(orpo(good, bad), [0.5 + 0.1 * np.log1p(np.exp(-1.680266))], rtol=1e-5)
    np.testing.assert_allclose(kto(good, jnp.ones(1), jnp.float32(0.5), beta=1.0), [1 - 0.2689414], rtol=1e-6)


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_better_answer_gains(name: str) -> None:
    def loss(margin: jax.Array) -> jax.Array:
        return PAIRWISE[name](margin - 1.0, -margin - 1.0)[0]

    value, slope = jax.value_and_grad(loss)(jnp.array([0.1]))
    assert np.isfinite(value)
    assert slope[0] < 0 or name == "discopop"  # which is not monotone near 0, as found
    for extreme in (50.0, -50.0):
        if name != "orpo":  # its margins are log-probabilities
            assert np.isfinite(jax.grad(loss)(jnp.array([extreme]))).all()


def test_smoothed_labels_mix_both() -> None:
    good, bad = jnp.array([1.0]), jnp.array([-2.0])
    mixed = 0.8 * dpo(good, bad) + 0.2 * dpo(bad, good)
    np.testing.assert_allclose(dpo(good, bad, label_smoothing=0.2), mixed, rtol=1e-6)


LOGITS = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.log(jnp.array([0.25, 0.25, 0.5]))


def test_divergences() -> None:
    # 0.25 ln(0.25 / 0.5) + 0.5 ln(0.5 / 0.25), either way; JSD: 0.125 ln 2 less what the mean of both gives
    np.testing.assert_allclose(distil(*LOGITS, mixture=0.0), 0.25 * np.log(2), rtol=1e-5)
    np.testing.assert_allclose(distil(*LOGITS, mixture=1.0), 0.25 * np.log(2), rtol=1e-5)
    jsd = 0.5 * np.log(0.5 / 0.375) + 0.25 * np.log(0.25 / 0.375)
    np.testing.assert_allclose(distil(*LOGITS, mixture=0.5), jsd, rtol=1e-5)
    np.testing.assert_allclose(distil(LOGITS[0], LOGITS[0], mixture=0.3), 0.0, atol=1e-7)


def test_the_rest_of_the_vocabulary_is_one_token_or_none() -> None:
    # the student's likeliest, and all others: 0.5 / 0.5 against 0.25 / 0.75
    bucket = 0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75)
    np.testing.assert_allclose(distil_top(*LOGITS, count=1), bucket, rtol=1e-5)
    np.testing.assert_allclose(distil_top(*LOGITS, count=1, tail="drop"), 0.0, atol=1e-7)
    np.testing.assert_allclose(distil_top(*LOGITS, count=3, tail="drop"), distil(*LOGITS), rtol=1e-5)


def test_what_cannot_happen_counts_nothing() -> None:
    certain = jnp.array([0.0, -jnp.inf])
    np.testing.assert_allclose(divergence(certain, jnp.log(jnp.array([0.5, 0.5])), mixture=1.0), np.log(2), rtol=1e-6)


def test_in_expectation_the_sampled_gradient_is_that_of_the_divergence() -> None:
    student, teacher = LOGITS
    exact = jax.grad(lambda x: distil(x, teacher, mixture=1.0))(student)

    def sampled(logits: jax.Array) -> jax.Array:
        own = jax.nn.log_softmax(logits)
        return (jax.lax.stop_gradient(jnp.exp(own)) * policy_gradient_of_kl(own, jax.nn.log_softmax(teacher))).sum()

    np.testing.assert_allclose(jax.grad(sampled)(student), exact, atol=1e-6)


def test_answers_that_are_certain_have_finite_odds() -> None:
    certain, other = jnp.zeros(1), jnp.array([-1.0])
    value, gradient = jax.value_and_grad(lambda x: orpo(x, other).sum())(certain)
    assert np.isfinite(value) and np.isfinite(gradient).all()
