"""Sums and means over the tokens that count. Denominators are always the caller's, never implied."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_sum(values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Sum over `mask`; what lies outside may be anything, NaN included, in value and in gradient."""
    return jnp.where(mask, values, 0.0).sum()


def masked_max(values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Largest value over `mask`; 0 for an empty mask. Meant for magnitudes."""
    return jnp.where(mask, values, 0.0).max()
