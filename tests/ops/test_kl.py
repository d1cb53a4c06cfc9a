import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.ops.kl import KLEstimator, kl_estimate

LOGPROBS = jnp.array([-1.0, -2.0, -0.5])
REFERENCE = jnp.array([-1.5, -1.0, -0.5])


@pytest.mark.parametrize(
    ("estimator", "values", "gradients"),
    [
        ("k1", [0.5, -1.0, 0.0], [1.0, 1.0, 1.0]),
        ("k2", [0.125, 0.5, 0.0], [0.5, -1.0, 0.0]),
        ("k3", [0.1065307, 0.7182818, 0.0], [0.3934693, -1.7182818, 0.0]),  # e^-0.5 - 0.5, e - 2; 1 - e^d
    ],
)
def test_by_hand(estimator: str, values: list[float], gradients: list[float]) -> None:
    np.testing.assert_allclose(kl_estimate(LOGPROBS, REFERENCE, estimator), values, rtol=1e-6, atol=1e-7)
    gradient = jax.grad(lambda x: kl_estimate(x, REFERENCE, estimator).sum())(LOGPROBS)
    np.testing.assert_allclose(gradient, gradients, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("estimator", "like"), [("k1+", "k1"), ("k3+", "k3")])
def test_straight_through_has_the_gradient_of_k2(estimator: KLEstimator, like: KLEstimator) -> None:
    np.testing.assert_allclose(kl_estimate(LOGPROBS, REFERENCE, estimator), kl_estimate(LOGPROBS, REFERENCE, like))
    gradient = jax.grad(lambda x: kl_estimate(x, REFERENCE, estimator).sum())(LOGPROBS)
    np.testing.assert_allclose(gradient, LOGPROBS - REFERENCE, rtol=1e-6)


def test_limits() -> None:
    far = jnp.array([-30.0, 0.0]), jnp.array([0.0, -30.0])
    np.testing.assert_allclose(
        kl_estimate(*far, "k3", difference_limit=2.0), [np.exp(2) - 3, np.exp(-2) + 1], rtol=1e-6
    )
    np.testing.assert_array_equal(kl_estimate(*far, "k1", value_limit=10.0), [-10.0, 10.0])
    np.testing.assert_array_equal(kl_estimate(*far, "abs"), [30.0, 30.0])


def test_in_expectation_k1_and_k3_are_the_divergence_and_k2_nearly() -> None:
    policy, reference = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.4, 0.4, 0.2])
    mean = {e: float((policy * kl_estimate(jnp.log(policy), jnp.log(reference), e)).sum()) for e in ("k1", "k2", "k3")}
    # 0.5 ln(0.5 / 0.4) + 0.3 ln(0.3 / 0.4)
    assert mean == {
        "k1": pytest.approx(0.0252672, rel=1e-5),
        "k2": pytest.approx(0.0248624, rel=1e-5),
        "k3": mean["k3"],
    }
    assert mean["k3"] == pytest.approx(0.0252672, rel=1e-5)


def test_k3_keeps_its_digits_for_policies_that_hardly_differ() -> None:
    np.testing.assert_allclose(kl_estimate(jnp.array([-1e-4]), jnp.array([0.0])), [5.0002e-9], rtol=2e-3)


def test_another_estimator_is_refused() -> None:
    with pytest.raises(TypeError, match="estimator"):
        kl_estimate(LOGPROBS, REFERENCE, "k4")  # type: ignore[arg-type]
