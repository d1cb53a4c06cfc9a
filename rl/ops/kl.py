"""Estimators of KL(policy || reference) from the policy's tokens (Schulman, "Approximating KL Divergence", 2020)."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl.ops.masked import magnitude

KLEstimator = Literal["k1", "k2", "k3", "abs", "k1+", "k3+"]
KL_ESTIMATORS: tuple[str, ...] = get_args(KLEstimator)


def kl_estimate(
    logprobs: Float[Array, "*shape"],
    reference: Float[Array, "*shape"],
    estimator: KLEstimator = "k3",
    *,
    difference_limit: float | None = None,
    value_limit: float | None = None,
) -> Float[Array, "*shape"]:
    """Per-token estimate from the log-probabilities of the sampled tokens.

    With `d = reference - logprobs`: `k1 = -d` (unbiased, high variance), `k2 = d**2 / 2` (biased, its gradient is the
    unbiased one when used as a loss), `k3 = exp(d) - 1 - d` (unbiased, never negative), `abs = |d|`. `k1+` and `k3+`
    have the value of k1 and k3 and, straight through, the gradient of k2 (arXiv:2510.01555).

    Args:
        logprobs: under the policy.
        reference: under the reference.
        estimator: one of these.
        difference_limit: in k3, `d` is clamped to ± this (verl: 20).
        value_limit: the estimate is clamped to ± this (verl's k3, AReaL, OpenRLHF: 10).

    Raises:
        ValueError: for another estimator.
    """
    if estimator not in KL_ESTIMATORS:
        raise ValueError(f"kl estimator is {estimator!r}; expected one of {', '.join(KL_ESTIMATORS)}")
    difference = reference - logprobs
    square = 0.5 * difference**2
    if estimator in ("k1", "k1+"):
        value = -difference
    elif estimator == "k2":
        value = square
    elif estimator == "abs":
        value = magnitude(difference)
    else:
        if difference_limit is not None:
            difference = jnp.clip(difference, -difference_limit, difference_limit)
        value = jnp.expm1(difference) - difference
    if value_limit is not None:
        value = jnp.clip(value, -value_limit, value_limit)
    if estimator.endswith("+"):
        return jax.lax.stop_gradient(value - square) + square
    return value
