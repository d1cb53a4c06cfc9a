"""Drawing one token per row, and its log-probability under exactly the distribution it was drawn from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

BLOCK = 32


class Draw(NamedTuple):
    tokens: Int[Array, "S"]
    logprobs: Float[Array, "S"]


class DrawSettings(NamedTuple):
    """Per row. See `TokenSampling` for the meaning of each."""

    temperature: Float[Array, "S"]
    top_p: Float[Array, "S"]
    top_k: Int[Array, "S"]
    seed: UInt32[Array, "S"]


def draw(logits: Float[Array, "S V"], settings: DrawSettings, positions: Int[Array, "S"], *, truncate: bool) -> Draw:
    """Draws a token per row by inverting the cumulative distribution.

    The two uniforms a row needs come from its own seed and position, so a draw does not depend on what else is in the
    batch. Inversion is done in two steps (block of the vocabulary, then token within it), which needs no noise per
    vocabulary entry: Gumbel noise over 512 entries costs more here than a transformer layer.

    Args:
        truncate: whether any row uses top-p or top-k (they need a sort of the vocabulary).
    """
    greedy = settings.temperature <= 0
    scaled = logits.astype(jnp.float32) / jnp.where(greedy, 1.0, settings.temperature)[:, None]
    if truncate:
        scaled = jnp.where(keep(scaled, settings.top_p, settings.top_k), scaled, -jnp.inf)
    drawn = _invert(scaled, _uniforms(settings.seed, positions))
    best = jnp.argmax(logits, axis=-1)
    return Draw(jnp.where(greedy, best, drawn.tokens), jnp.where(greedy, 0.0, drawn.logprobs))


def keep(scaled: Float[Array, "S V"], top_p: Float[Array, "S"], top_k: Int[Array, "S"]) -> Array:
    """Which tokens survive truncation `[S, V]`: among the `top_k` likeliest, and within the nucleus of `top_p`.

    The nucleus (Holtzman et al. 2020, arXiv:1904.09751) is taken of what top-k left. The likeliest token always stays;
    tokens tied with the last one kept stay too.
    """
    V = scaled.shape[1]
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    rank = jnp.arange(V)
    within_k = rank[None] < jnp.where(top_k > 0, top_k, V)[:, None]
    probability = jax.nn.softmax(jnp.where(within_k, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    kept = within_k & ((before < top_p[:, None]) | (top_p >= 1.0)[:, None])
    last = jnp.maximum(kept.sum(axis=-1), 1) - 1
    return scaled >= jnp.take_along_axis(ordered, last[:, None], axis=1)


def _uniforms(seed: UInt32[Array, "S"], positions: Int[Array, "S"]) -> Float[Array, "S 2"]:
    def one(seed: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position), (2,))

    return jax.vmap(one)(seed, positions)


def _invert(scaled: Float[Array, "S V"], uniforms: Float[Array, "S 2"]) -> Draw:
    S, V = scaled.shape
    padded = jnp.pad(scaled, ((0, 0), (0, -V % BLOCK)), constant_values=-jnp.inf)
    mass = jnp.exp(padded - padded.max(axis=-1, keepdims=True)).reshape(S, -1, BLOCK)
    per_block = mass.sum(axis=-1)
    block = _first_above(per_block, uniforms[:, 0])
    within = jnp.take_along_axis(mass, block[:, None, None], axis=1)[:, 0]
    offset = _first_above(within, uniforms[:, 1])
    chosen = jnp.take_along_axis(within, offset[:, None], axis=1)[:, 0]
    return Draw(block * BLOCK + offset, jnp.log(chosen / per_block.sum(axis=-1)))


def _first_above(mass: Float[Array, "S M"], uniform: Float[Array, "S"]) -> Int[Array, "S"]:
    """Index drawn in proportion to `mass`; never one without mass, however the sums round."""
    cumulative = jnp.cumsum(mass, axis=-1)
    index = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(axis=-1)
    last = mass.shape[1] - 1 - jnp.argmax((mass > 0)[:, ::-1], axis=-1)
    return jnp.minimum(index, last).astype(jnp.int32)
