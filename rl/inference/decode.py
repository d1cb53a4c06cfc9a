"""The engine's compiled programs: fill the cache from prompts, then draw tokens. Pure functions over a `Cache`.

Every slot's keys and values lie at the column of their position, so what a slot computes depends on its own tokens
only: not on its neighbours, not on which slot it is, not on when it was admitted. That is what makes a resumed run
sample the same bits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl.inference.sampler import Draw, DrawSettings, draw
from rl.models.attention import masked_attention
from rl.models.base import Attend, Block, Model, Params


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
        stops_from: the position from which they may be drawn.
        settings: how it draws.
    """

    tokens: Int[Array, "S"]
    positions: Int[Array, "S"]
    remaining: Int[Array, "S"]
    stop_ids: Int[Array, "S Z"]
    stops_from: Int[Array, "S"]
    settings: DrawSettings


class Drawn(NamedTuple):
    """The tokens of one dispatch: `[n, S]`, meaningful where `valid`."""

    tokens: Int[Array, "n S"]
    logprobs: Float[Array, "n S"]
    plain_logprobs: Float[Array, "n S"]
    valid: Bool[Array, "n S"]


def new_cache(model: Model, slots: int, context: int) -> Cache:
    c = model.config
    dtype = jnp.dtype(c.compute_dtype)
    keys = tuple(jnp.zeros((slots, c.kv_heads, c.head_size, context), dtype) for _ in range(c.layers))
    values = tuple(jnp.zeros((slots, c.kv_heads, context, c.head_size), dtype) for _ in range(c.layers))
    return Cache(keys, values)


class Layer(NamedTuple):
    """What one layer computes: its block, which rotation it uses, and how many tokens it sees (None: all)."""

    block: Block
    rope: int
    window: int | None


def layers_of(model: Model) -> list[Layer]:
    c = model.config
    return [Layer(stack.block, c.layer_ropes[i], c.windows[i]) for stack in model.stacks for i in stack.layers]


def unstack(model: Model, params: Params) -> Params:
    """Parameters as the decoder wants them: a list of layers, cut once per policy version and not once per token."""
    layers = [
        jax.tree.map(lambda a: a[i], params[stack.name])  # noqa: B023
        for stack in model.stacks
        for i in range(len(stack.layers))
    ]
    return {**{name: value for name, value in params.items() if name not in _names(model)}, "layers": layers}


def _names(model: Model) -> set[str]:
    return {stack.name for stack in model.stacks}


def make_prefill(model: Model) -> Callable[..., Cache]:
    """`prefill(params, cache, prompts [A,T], slots [A*g], sources [A*g]) -> cache`.

    Runs each of A prompts once, and copies its keys and values into every slot that samples from it (`sources` says
    which prompt, `slots` where to; a slot number of S means nowhere).
    """

    layers = layers_of(model)

    def prefill(params: Params, cache: Cache, prompts: jax.Array, slots: jax.Array, sources: jax.Array) -> Cache:
        A, T = prompts.shape
        column = jnp.arange(T)
        rotations = model.rotations(jnp.broadcast_to(column[None], (A, T)), T)
        distance = column[:, None] - column[None]

        def attend_within(window: int | None) -> Attend:
            near = (distance >= 0) & (distance < (T if window is None else window))
            mask = jnp.broadcast_to(near, (A, T, T))

            def attend(q: Any, k: Any, v: Any, state: Any, *, sinks: Any = None) -> tuple[Any, Any]:
                return masked_attention(q, k, v, mask, sinks), (k, v)

            return attend

        x = model.embed(params, prompts)
        keys, values = [], []
        for layer, own, old_k, old_v in zip(layers, params["layers"], cache.keys, cache.values, strict=True):
            x, (k, v), _ = layer.block(own, x, rotations[layer.rope], attend_within(layer.window), None)
            new_k, new_v = k.transpose(0, 2, 3, 1)[sources], v.transpose(0, 2, 1, 3)[sources]
            keys.append(old_k.at[slots, :, :, :T].set(new_k, mode="drop"))
            values.append(old_v.at[slots, :, :T].set(new_v, mode="drop"))
        return Cache(tuple(keys), tuple(values))

    return prefill


def make_decode(model: Model, tokens_per_dispatch: int) -> Callable[..., tuple[Cache, Slots, Drawn]]:
    """`decode(params, cache, slots) -> (cache, slots, drawn)`: up to `tokens_per_dispatch` tokens per slot.

    Ends early once every slot is idle.
    """

    layers = layers_of(model)

    def step(params: Params, cache: Cache, slots: Slots) -> tuple[Cache, Draw]:
        S, T = slots.tokens.shape[0], cache.values[0].shape[2]
        rows = jnp.arange(S)
        rotations = model.rotations(slots.positions[:, None], T)
        back = slots.positions[:, None] - jnp.arange(T)[None]

        def attend_within(window: int | None) -> Attend:
            visible = (back >= 0) & (back < (T if window is None else window))

            def attend(q: Any, k: Any, v: Any, state: Any, *, sinks: Any = None) -> tuple[Any, Any]:
                keys, values = state
                keys = keys.at[rows, :, :, slots.positions].set(k[:, 0], mode="promise_in_bounds", unique_indices=True)
                values = values.at[rows, :, slots.positions].set(v[:, 0], mode="promise_in_bounds", unique_indices=True)
                return cached_attention(q[:, 0], keys, values, visible, sinks)[:, None], (keys, values)

            return attend

        x = model.embed(params, slots.tokens[:, None])
        states = []
        for layer, own, *state in zip(layers, params["layers"], cache.keys, cache.values, strict=True):
            x, state, _ = layer.block(own, x, rotations[layer.rope], attend_within(layer.window), tuple(state))
            states.append(state)
        logits = jnp.einsum("SD,VD->SV", model.norm(params, x)[:, 0], model.head(params).astype(x.dtype))
        early = (slots.positions < slots.stops_from)[:, None] & (slots.stop_ids >= 0)
        drawn = draw(logits, slots.settings, slots.positions, jnp.where(early, slots.stop_ids, model.config.vocab_size))
        keys, values = zip(*states, strict=True)
        return Cache(keys, values), drawn

    def decode(params: Params, cache: Cache, slots: Slots) -> tuple[Cache, Slots, Drawn]:
        S, n = slots.tokens.shape[0], tokens_per_dispatch
        empty = Drawn(jnp.zeros((n, S), jnp.int32), jnp.zeros((n, S)), jnp.zeros((n, S)), jnp.zeros((n, S), bool))

        def body(carry: tuple[jax.Array, Cache, Slots, Drawn]) -> tuple[jax.Array, Cache, Slots, Drawn]:
            i, cache, slots, out = carry
            active = slots.remaining > 0
            cache, drawn = step(params, cache, slots)
            stopped = (drawn.tokens[:, None] == slots.stop_ids).any(axis=1)
            left = jnp.where(active & ~stopped, slots.remaining - 1, 0)
            slots = slots._replace(
                tokens=jnp.where(active, drawn.tokens, slots.tokens),
                # An idle slot keeps writing to its own last column; it must not run past the cache.
                positions=slots.positions + (left > 0).astype(jnp.int32),
                remaining=left,
            )
            out = Drawn(*(whole.at[i].set(new) for whole, new in zip(out, (*drawn, active), strict=True)))
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
    sinks: Float[Array, "N"] | None = None,
) -> Float[Array, "S N H"]:
    """One scaled query per slot against its cache; XLA's batched products read these layouts without a copy."""
    S, N, H = q.shape
    K = keys.shape[1]
    scores = jnp.einsum("SKGH,SKHT->SKGT", q.reshape(S, K, N // K, H), keys).astype(jnp.float32)
    scores = jnp.where(visible[:, None, None], scores, -1e30)
    top = scores.max(axis=-1, keepdims=True)
    sink = None if sinks is None else sinks.astype(jnp.float32).reshape(1, K, N // K, 1)
    top = top if sink is None else jnp.maximum(top, sink)
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    total = total if sink is None else total + jnp.exp(sink - top)
    out = jnp.einsum("SKGT,SKTH->SKGH", weights.astype(values.dtype), values)
    return (out / total.astype(out.dtype)).reshape(S, N, H)
