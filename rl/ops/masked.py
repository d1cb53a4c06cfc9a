"""Sums and means over the tokens that count. Denominators are always the caller's, never implied."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl.types import Number


def masked_sum(values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Sum over `mask`; what lies outside may be anything, NaN included, in value and in gradient."""
    return jnp.where(mask, values, 0.0).sum()


def masked_max(values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Largest value over `mask`; 0 for an empty mask. Meant for magnitudes."""
    return jnp.where(mask, values, 0.0).max()


def magnitude(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The absolute value, with a gradient of 0 at 0, where a policy is while on policy; that of jax is 1 there."""
    return jnp.sign(values) * values


def clamp(values: Float[Array, "*shape"], limit: Number) -> Float[Array, "*shape"]:
    """Values within ± `limit`, so that their exponential is finite; what was infinite becomes NaN and is not hidden."""
    return jnp.where(jnp.isfinite(values), jnp.clip(values, -limit, limit), jnp.nan)
