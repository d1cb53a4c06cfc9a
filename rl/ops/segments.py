"""Sums over the sequences of packed rows: every token is told the sum of its own segment."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def segment_sum(
    values: Float[Array, "R L"], mask: Bool[Array, "R L"], segment_ids: Int[Array, "R L"]
) -> Float[Array, "R L"]:
    """The sum of the masked values of each segment, at all of its tokens. Masked-out values may be anything."""
    return _per_segment(jax.ops.segment_sum, jnp.where(mask, values, 0.0), segment_ids)


def segment_mean(
    values: Float[Array, "R L"], mask: Bool[Array, "R L"], segment_ids: Int[Array, "R L"]
) -> Float[Array, "R L"]:
    """The mean of the masked values of each segment, at all of its tokens; 0 where nothing is masked in."""
    count = segment_sum(mask.astype(values.dtype), mask, segment_ids)
    return segment_sum(values, mask, segment_ids) / jnp.maximum(count, 1.0)


def segment_max(
    values: Float[Array, "R L"], mask: Bool[Array, "R L"], segment_ids: Int[Array, "R L"]
) -> Float[Array, "R L"]:
    """The largest of the masked values of each segment, at all of its tokens; 0 where nothing is masked in."""
    largest = _per_segment(jax.ops.segment_max, jnp.where(mask, values, -jnp.inf), segment_ids)
    return jnp.where(jnp.isneginf(largest), 0.0, largest)


def _per_segment(
    reduce: Callable[..., jax.Array], values: Float[Array, "R L"], segment_ids: Int[Array, "R L"]
) -> Float[Array, "R L"]:
    def row(v: jax.Array, ids: jax.Array) -> jax.Array:
        return reduce(v, ids, num_segments=v.shape[0] + 1)[ids]

    return jax.vmap(row)(values, segment_ids)
