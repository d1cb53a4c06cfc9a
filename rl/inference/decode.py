"""The compiled program that draws tokens: a pure function over a `Cache`.

What a slot computes depends on its own tokens only: not on its neighbours, not on which slot it is, not on when it was
admitted. That is what makes a resumed run sample the same bits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from rl.inference.cache import Cache, cached_attention
from rl.inference.layers import LARGE, layers_of
from rl.inference.sampler import Draw, DrawSettings, draw
from rl.models.base import Attend, Model, Params
from rl.models.replay import choice_dtype, choice_shape, recorded
from rl.models.turned import Turned


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
    """The tokens of one dispatch: `[n, S]`, meaningful where `valid`.

    `experts`, if they are recorded, are those that the token before each went through.
    """

    tokens: Int[Array, "n S"]
    logprobs: Float[Array, "n S"]
    plain_logprobs: Float[Array, "n S"]
    valid: Bool[Array, "n S"]
    experts: UInt[Array, "n S layers k"] | None = None


def make_decode(
    model: Model, tokens_per_dispatch: int, record: bool = False
) -> Callable[..., tuple[Cache, Slots, Drawn]]:
    """`decode(params, cache, slots) -> (cache, slots, drawn)`: up to `tokens_per_dispatch` tokens per slot.

    Ends early once every slot is idle.

    Args:
        model: the decoder.
        tokens_per_dispatch: most tokens per slot.
        record: tell which experts tokens went through.
    """

    layers = layers_of(model)

    def step(params: Params, cache: Cache, slots: Slots) -> tuple[Cache, Draw, jax.Array | None]:
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
                return cached_attention(q, keys, values, visible[:, None], sinks), (keys, values)

            return attend

        ends = params["ends"]
        x = model.embed(ends, slots.tokens[:, None])
        states, seen = [], []
        for layer, own, *state in zip(layers, params["layers"], cache.keys, cache.values, strict=True):
            x, state, each = layer.block(own, x, rotations[layer.rope], attend_within(layer.window), tuple(state))
            states.append(state)
            seen.append(each)
        logits = logits_of(model.norm(ends, x)[:, 0], model.head(ends).astype(x.dtype))
        early = (slots.positions < slots.stops_from)[:, None] & (slots.stop_ids >= 0)
        drawn = draw(logits, slots.settings, slots.positions, jnp.where(early, slots.stop_ids, model.config.vocab_size))
        keys, values = zip(*states, strict=True)
        experts = recorded(model, seen)[:, 0] if record else None
        return Cache(keys, values), drawn, experts

    def decode(params: Params, cache: Cache, slots: Slots) -> tuple[Cache, Slots, Drawn]:
        S, n = slots.tokens.shape[0], tokens_per_dispatch
        experts = jnp.zeros((n, S, *choice_shape(model)), choice_dtype(model)) if record else None
        plain = jnp.zeros((n, S))
        empty = Drawn(jnp.zeros((n, S), jnp.int32), plain, plain, jnp.zeros((n, S), bool), experts)

        def body(carry: tuple[jax.Array, Cache, Slots, Drawn]) -> tuple[jax.Array, Cache, Slots, Drawn]:
            i, cache, slots, out = carry
            active = slots.remaining > 0
            cache, drawn, experts = step(params, cache, slots)
            stopped = (drawn.tokens[:, None] == slots.stop_ids).any(axis=1)
            left = jnp.where(active & ~stopped, slots.remaining - 1, 0)
            slots = slots._replace(
                tokens=jnp.where(active, drawn.tokens, slots.tokens),
                # An idle slot writes to the column after the tokens it keeps, which is nobody's; it stays there.
                positions=slots.positions + active.astype(jnp.int32),
                remaining=left,
            )
            out = jax.tree.map(lambda whole, new: whole.at[i].set(new), out, Drawn(*drawn, active, experts))
            return i + 1, cache, slots, out

        def more(carry: tuple[jax.Array, Cache, Slots, Drawn]) -> jax.Array:
            return (carry[0] < n) & (carry[2].remaining > 0).any()

        _, cache, slots, out = jax.lax.while_loop(more, body, (jnp.zeros((), jnp.int32), cache, slots, empty))
        return cache, slots, out

    return decode


def logits_of(x: Float[Array, "S D"], head: Float[Array, "V D"]) -> Float[Array, "S V"]:
    """The head's product, with a large head on the left: see `Turned`."""
    return Turned(head, head.shape[::-1]).after(x) if head.size >= LARGE else jnp.einsum("SD,VD->SV", x, head)
