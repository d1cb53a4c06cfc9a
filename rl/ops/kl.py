"""Estimators of KL(policy || reference) from the policy's tokens (Schulman, "Approximating KL Divergence", 2020)."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

KLEstimator = Literal["k1", "k2", "k3"]
KL_ESTIMATORS: tuple[str, ...] = get_args(KLEstimator)


def kl_estimate(
    logprobs: Float[Array, "*shape"], reference: Float[Array, "*shape"], estimator: KLEstimator = "k3"
) -> Float[Array, "*shape"]:
    """Per-token estimate from the log-probabilities of the sampled tokens.

    With `d = reference - logprobs`: `k1 = -d` (unbiased, high variance), `k2 = d**2 / 2` (biased, its gradient is the
    unbiased one when used as a loss), `k3 = exp(d) - 1 - d` (unbiased, never negative).

    Raises:
        ValueError: for another estimator.
    """
    difference = reference - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return 0.5 * difference**2
    if estimator == "k3":
        return jnp.expm1(difference) - difference
    raise ValueError(f"kl estimator is {estimator!r}; expected one of {', '.join(KL_ESTIMATORS)}")
