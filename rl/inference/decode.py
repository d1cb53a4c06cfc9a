"""The engine's compiled programs: fill the cache from prompts, then draw tokens. Pure functions over a `Cache`.

Every slot's keys and values lie at the column of their position, so what a slot computes depends on its own tokens
only: not on its neighbours, not on which slot it is, not on when it was admitted. That is what makes a resumed run
sample the same bits.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl.inference.sampler import DrawSettings, draw
from rl.models.decoder import Model, Params, masked_attention


class Cache(NamedTuple):
    """Keys and values, one array per layer so that each is updated in place (a slice of a stack would be copied)."""

    keys: tuple[Float[Array, "S K H T"], ...]
    values: tuple[Float[Array, "S K T H"], ...]


class Slots(NamedTuple):
    """What each of the S slots is doing; on the host between dispatches.

    Attributes:
        tokens: the newest token, not yet in the cache.
        positions: its position.
        remaining: tokens it may still draw; 0 is idle.
        stop_ids: tokens that end it, padded with -1.
        settings: how it draws.
    """

    tokens: Int[Array, "S"]
    positions: Int[Array, "S"]
    remaining: Int[Array, "S"]
    stop_ids: Int[Array, "S Z"]
    settings: DrawSettings


class Drawn(NamedTuple):
    """The tokens of one dispatch: `[n, S]`, meaningful where `valid`."""

    tokens: Int[Array, "n S"]
    logprobs: Float[Array, "n S"]
    valid: Bool[Array, "n S"]


def new_cache(model: Model, slots: int, context: int) -> Cache:
    c = model.config
    dtype = jnp.dtype(c.compute_dtype)
    keys = tuple(jnp.zeros((slots, c.kv_heads, c.head_size, context), dtype) for _ in range(c.layers))
    values = tuple(jnp.zeros((slots, c.kv_heads, context, c.head_size), dtype) for _ in range(c.layers))
    return Cache(keys, values)


def unstack(model: Model, params: Params) -> Params:
    """Parameters as the decoder wants them: a list of layers, cut once per policy version and not once per token."""
    layers = [jax.tree.map(lambda a: a[i], params["layers"]) for i in range(model.config.layers)]  # noqa: B023
    return {**params, "layers": layers}


def make_prefill(model: Model) -> Callable[..., Cache]:
    """`prefill(params, cache, prompts [A,T], slots [A*g], sources [A*g]) -> cache`.

    Runs each of A prompts once, and copies its keys and values into every slot that samples from it (`sources` says
    which prompt, `slots` where to; a slot number of S means nowhere).
    """

    def prefill(params: Params, cache: Cache, prompts: jax.Array, slots: jax.Array, sources: jax.Array) -> Cache:
        A, T = prompts.shape
        rotation = model.rotation(jnp.broadcast_to(jnp.arange(T)[None], (A, T)), T)
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (A, T, T))

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, state: None) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            return masked_attention(q, k, v, mask), (k, v)

        x = model.embed(params, prompts)
        keys, values = [], []
        for layer, old_k, old_v in zip(params["layers"], cache.keys, cache.values, strict=True):
            x, (k, v) = model.block(layer, x, rotation, attend, None)
            new_k, new_v = k.transpose(0, 2, 3, 1)[sources], v.transpose(0, 2, 1, 3)[sources]
            keys.append(old_k.at[slots, :, :, :T].set(new_k, mode="drop"))
            values.append(old_v.at[slots, :, :T].set(new_v, mode="drop"))
        return Cache(tuple(keys), tuple(values))

    return prefill


def make_decode(model: Model, tokens_per_dispatch: int) -> Callable[..., tuple[Cache, Slots, Drawn]]:
    """`decode(params, cache, slots, truncate) -> (cache, slots, drawn)`: up to `tokens_per_dispatch` tokens per slot.

    Ends early once every slot is idle.
    """

    def step(params: Params, cache: Cache, slots: Slots, truncate: bool) -> tuple[Cache, jax.Array, jax.Array]:
        S, T = slots.tokens.shape[0], cache.values[0].shape[2]
        rows = jnp.arange(S)
        rotation = model.rotation(slots.positions[:, None], T)
        visible = jnp.arange(T)[None] <= slots.positions[:, None]

        def attend(
            q: jax.Array, k: jax.Array, v: jax.Array, state: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            keys, values = state
            keys = keys.at[rows, :, :, slots.positions].set(k[:, 0], mode="promise_in_bounds", unique_indices=True)
            values = values.at[rows, :, slots.positions].set(v[:, 0], mode="promise_in_bounds", unique_indices=True)
            return cached_attention(q[:, 0], keys, values, visible)[:, None], (keys, values)

        x = model.embed(params, slots.tokens[:, None])
        states = []
        for layer, *state in zip(params["layers"], cache.keys, cache.values, strict=True):
            x, state = model.block(layer, x, rotation, attend, tuple(state))
            states.append(state)
        logits = jnp.einsum("SD,VD->SV", model.norm(params, x)[:, 0], model.head(params).astype(x.dtype))
        drawn = draw(logits, slots.settings, slots.positions, truncate=truncate)
        keys, values = zip(*states, strict=True)
        return Cache(keys, values), drawn.tokens, drawn.logprobs

    def decode(params: Params, cache: Cache, slots: Slots, truncate: bool) -> tuple[Cache, Slots, Drawn]:
        S, n = slots.tokens.shape[0], tokens_per_dispatch
        empty = Drawn(jnp.zeros((n, S), jnp.int32), jnp.zeros((n, S)), jnp.zeros((n, S), bool))

        def body(carry: tuple[jax.Array, Cache, Slots, Drawn]) -> tuple[jax.Array, Cache, Slots, Drawn]:
            i, cache, slots, out = carry
            active = slots.remaining > 0
            cache, tokens, logprobs = step(params, cache, slots, truncate)
            stopped = (tokens[:, None] == slots.stop_ids).any(axis=1)
            left = jnp.where(active & ~stopped, slots.remaining - 1, 0)
            slots = slots._replace(
                tokens=jnp.where(active, tokens, slots.tokens),
                # An idle slot keeps writing to its own last column; it must not run past the cache.
                positions=slots.positions + (left > 0).astype(jnp.int32),
                remaining=left,
            )
            out = Drawn(out.tokens.at[i].set(tokens), out.logprobs.at[i].set(logprobs), out.valid.at[i].set(active))
            return i + 1, cache, slots, out

        def more(carry: tuple[jax.Array, Cache, Slots, Drawn]) -> jax.Array:
            return (carry[0] < n) & (carry[2].remaining > 0).any()

        _, cache, slots, out = jax.lax.while_loop(more, body, (jnp.zeros((), jnp.int32), cache, slots, empty))
        return cache, slots, out

    return decode


def cached_attention(
    q: Float[Array, "S N H"],
    keys: Float[Array, "S K H T"],
    values: Float[Array, "S K T H"],
    visible: Bool[Array, "S T"],
) -> Float[Array, "S N H"]:
    """One query per slot against its cache; the layouts are those that XLA's batched products read without a copy."""
    S, N, H = q.shape
    K = keys.shape[1]
    grouped = q.reshape(S, K, N // K, H) * H**-0.5
    scores = jnp.einsum("SKGH,SKHT->SKGT", grouped, keys).astype(jnp.float32)
    scores = jnp.where(visible[:, None, None], scores, -1e30)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.einsum("SKGT,SKTH->SKGH", weights.astype(values.dtype), values)
    return (out / total.astype(out.dtype)).reshape(S, N, H)
