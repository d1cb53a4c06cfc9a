"""The keys and values of all slots, and what is done with them besides reading and decoding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl.models.base import Model


class Cache(NamedTuple):
    """Keys and values, one array per layer so that each is updated in place (a slice of a stack would be copied).

    A slot's column is the position of its token, so what a slot computes depends on its own tokens only.
    """

    keys: tuple[Float[Array, "S K H T"], ...]
    values: tuple[Float[Array, "S K T H"], ...]


def new_cache(model: Model, slots: int, columns: int) -> Cache:
    """An empty cache."""
    c = model.config
    dtype = jnp.dtype(c.compute_dtype)
    keys = tuple(jnp.zeros((slots, c.kv_heads, c.head_size, columns), dtype) for _ in range(c.layers))
    values = tuple(jnp.zeros((slots, c.kv_heads, columns, c.head_size), dtype) for _ in range(c.layers))
    return Cache(keys, values)


def resized(a: Float[Array, "S K X Y"], columns: int, axis: int) -> Float[Array, "S K X2 Y2"]:
    """One layer's keys (axis 3) or values (axis 2) with more columns, or with the first of them."""
    if columns <= a.shape[axis]:
        return jax.lax.slice_in_dim(a, 0, columns, axis=axis)
    more = [(0, 0)] * a.ndim
    more[axis] = (0, columns - a.shape[axis])
    return jnp.pad(a, more)


def copy_slots(
    cache: Cache, sources: Int[Array, "S"], targets: Int[Array, "S"], count: Int[Array, ""], extent: int
) -> Cache:
    """The first `extent` columns of slots `sources` also in slots `targets`: `count` copies, one after the other."""

    def copied(i: jax.Array, cache: Cache) -> Cache:
        def one(a: jax.Array, axis: int) -> jax.Array:
            size = (1, *(extent if dim == axis else a.shape[dim] for dim in (1, 2, 3)))
            row = jax.lax.dynamic_slice(a, (sources[i], 0, 0, 0), size)
            return jax.lax.dynamic_update_slice(a, row, (targets[i], 0, 0, 0))

        return Cache(tuple(one(a, 3) for a in cache.keys), tuple(one(a, 2) for a in cache.values))

    return jax.lax.fori_loop(0, count, copied, cache)


def cached_attention(
    q: Float[Array, "S T N H"],
    keys: Float[Array, "S K H E"],
    values: Float[Array, "S K E H"],
    visible: Bool[Array, "S T E"],
    sinks: Float[Array, "N"] | None = None,
) -> Float[Array, "S T N H"]:
    """Scaled queries of each slot against its columns; XLA's batched products read these layouts without a copy."""
    S, T, N, H = q.shape
    K = keys.shape[1]
    G = N // K
    rows = q.reshape(S, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(S, K, G * T, H)
    scores = jnp.einsum("SKRH,SKHE->SKRE", rows, keys).astype(jnp.float32).reshape(S, K, G, T, -1)
    scores = jnp.where(visible[:, None, None], scores, -1e30)
    top = scores.max(axis=-1, keepdims=True)
    sink = None if sinks is None else sinks.astype(jnp.float32).reshape(1, K, G, 1, 1)
    top = top if sink is None else jnp.maximum(top, sink)
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    total = total if sink is None else total + jnp.exp(sink - top)
    out = jnp.einsum("SKRE,SKEH->SKRH", weights.astype(values.dtype).reshape(S, K, G * T, -1), values)
    out = out.reshape(S, K, G, T, H) / total.astype(out.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(S, T, N, H)
