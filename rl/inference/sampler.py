"""Drawing one token per row, and its log-probability under exactly the distribution it was drawn from.

What a row did not ask for costs nothing: truncation, biases and the second kind of log-probability stand behind
conditions that the compiled program decides as it runs, so that there is one program for all kinds of sampling.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from rl.inference.truncation import least_kept

BLOCK = 32
"""Tokens of the vocabulary that are first drawn together, as one."""

MOST_BLOCKS = 512
"""More blocks than this are drawn in blocks themselves: the sum up to each of n of them takes XLA's CPU backend n²."""


class Draw(NamedTuple):
    """The tokens, and their log-probabilities: as drawn, and under the model's own distribution."""

    tokens: Int[Array, "S"]
    logprobs: Float[Array, "S"]
    plain_logprobs: Float[Array, "S"]


class DrawSettings(NamedTuple):
    """Per row. See `TokenSampling` for the meaning of each.

    `bias_ids` are padded with V, which is no token.
    """

    temperature: Float[Array, "S"]
    top_p: Float[Array, "S"]
    top_k: Int[Array, "S"]
    min_p: Float[Array, "S"]
    seed: UInt32[Array, "S"]
    bias_ids: Int[Array, "S M"]
    biases: Float[Array, "S M"]


def draw(
    logits: Float[Array, "S V"],
    settings: DrawSettings,
    positions: Int[Array, "S"],
    banned: Int[Array, "S Z"],
) -> Draw:
    """Draws a token per row by inverting the cumulative distribution.

    The uniforms a row needs come from its own seed and position, so a draw does not depend on what else is in the
    batch. Inversion is done in steps (block of the vocabulary, then token within it), which needs no noise per
    vocabulary entry: Gumbel noise over 512 entries costs more here than a transformer layer.

    Args:
        logits: the model's.
        settings: how each row draws.
        positions: of the token that follows the drawn one's predecessor; any number that differs from draw to draw.
        banned: tokens that are not to be drawn, padded with V.
    """
    V = logits.shape[1]
    plain = logits.astype(jnp.float32)
    adjusted = (settings.bias_ids < V).any(axis=1) | (banned < V).any(axis=1)
    shifted = jax.lax.cond(adjusted.any(), _adjust, lambda x, *_: x, plain, settings, banned)
    greedy = settings.temperature <= 0
    scaled = shifted / jnp.where(greedy, 1.0, settings.temperature)[:, None]
    truncated = ~greedy & ((settings.top_p < 1) | (settings.top_k > 0) | (settings.min_p > 0))
    least = jax.lax.cond(truncated.any(), _threshold, lambda x, _: jnp.full(x.shape[:1], -jnp.inf), scaled, settings)
    tokens, logprobs = _drawn(shifted, jnp.where(scaled >= least[:, None], scaled, -jnp.inf), settings, positions)
    own = adjusted | truncated | (settings.temperature != 1)
    return Draw(tokens, logprobs, jax.lax.cond(own.any(), _plain_logprobs, _same, plain, tokens, logprobs, own))


def _adjust(logits: Float[Array, "S V"], settings: DrawSettings, banned: Int[Array, "S Z"]) -> Float[Array, "S V"]:
    row = jnp.arange(logits.shape[0])[:, None]
    biased = logits.at[row, settings.bias_ids].add(settings.biases, mode="drop")
    return biased.at[row, banned].set(-jnp.inf, mode="drop")


def _threshold(scaled: Float[Array, "S V"], settings: DrawSettings) -> Float[Array, "S"]:
    return least_kept(scaled, settings.top_p, settings.top_k, settings.min_p)


def _drawn(
    logits: Float[Array, "S V"], kept: Float[Array, "S V"], settings: DrawSettings, positions: Int[Array, "S"]
) -> tuple[Int[Array, "S"], Float[Array, "S"]]:
    """Draws from `kept`, or takes the likeliest of `logits` where a row is greedy; does only what some row needs."""
    greedy = settings.temperature <= 0

    def sampled() -> tuple[jax.Array, jax.Array]:
        return _invert(kept, _uniforms(settings.seed, positions, _steps(logits.shape[1])))

    def none() -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(greedy.shape, jnp.int32), jnp.zeros(greedy.shape)

    tokens, logprobs = jax.lax.cond((~greedy).any(), sampled, none)
    best = jax.lax.cond(greedy.any(), lambda: jnp.argmax(logits, axis=-1).astype(jnp.int32), lambda: none()[0])
    return jnp.where(greedy, best, tokens), jnp.where(greedy, 0.0, logprobs)


def _plain_logprobs(
    logits: Float[Array, "S V"], tokens: Int[Array, "S"], logprobs: Float[Array, "S"], own: Bool[Array, "S"]
) -> Float[Array, "S"]:
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    return jnp.where(own, chosen - jax.nn.logsumexp(logits, axis=1), logprobs)


def _same(
    logits: Float[Array, "S V"], tokens: Int[Array, "S"], logprobs: Float[Array, "S"], own: Bool[Array, "S"]
) -> Float[Array, "S"]:
    return logprobs


def _steps(vocabulary: int) -> int:
    return 2 if vocabulary <= BLOCK * MOST_BLOCKS else 3


def _uniforms(seed: UInt32[Array, "S"], positions: Int[Array, "S"], count: int) -> Float[Array, "S count"]:
    def one(seed: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position), (count,))

    return jax.vmap(one)(seed, positions)


def _invert(scaled: Float[Array, "S V"], uniforms: Float[Array, "S n"]) -> tuple[Int[Array, "S"], Float[Array, "S"]]:
    """One step per column of `uniforms`: a block, a block within it …, a token within that."""
    S, V = scaled.shape
    steps = uniforms.shape[1]
    whole = BLOCK ** (steps - 1)
    padded = jnp.pad(scaled, ((0, 0), (0, -V % whole)), constant_values=-jnp.inf)
    mass = jnp.exp(padded - padded.max(axis=-1, keepdims=True))
    levels = [mass]
    for _ in range(steps - 1):
        levels.append(levels[-1].reshape(S, -1, BLOCK).sum(axis=-1))
    token = _first_above(levels[-1], uniforms[:, 0])
    for step, level in enumerate(reversed(levels[:-1])):
        within = jnp.take_along_axis(level.reshape(S, -1, BLOCK), token[:, None, None], axis=1)[:, 0]
        token = token * BLOCK + _first_above(within, uniforms[:, step + 1])
    chosen = jnp.take_along_axis(mass, token[:, None], axis=1)[:, 0]
    return token, jnp.log(chosen / levels[-1].sum(axis=-1))


def _first_above(mass: Float[Array, "S M"], uniform: Float[Array, "S"]) -> Int[Array, "S"]:
    """Index drawn in proportion to `mass`; never one without mass, however the sums round.

    XLA adds up in blocks, so a sum may grow (or shrink) where nothing was added.
    """
    cumulative = jnp.cumsum(mass, axis=-1)
    possible = mass > 0
    above = possible & (cumulative > (uniform * cumulative[:, -1])[:, None])
    last = mass.shape[1] - 1 - jnp.argmax(possible[:, ::-1], axis=-1)
    return jnp.where(above.any(axis=-1), jnp.argmax(above, axis=-1), last).astype(jnp.int32)
