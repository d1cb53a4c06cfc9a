"""Reading pieces of prompts into the cache, a layer at a time.

Every layer of a kind runs the same compiled program: compiling takes as long for 30 layers as for one, and the many
shapes of pieces cost little. The price, a call per layer, is small beside the work on some hundred tokens. Drawing is
the other way round: its one program has all layers in it, because it has one shape and does little work per token.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, UInt

from rl.inference.cache import Cache, cached_attention
from rl.inference.layers import layers_of
from rl.models.base import Block, Model, Observed, Params, Rotation
from rl.models.replay import recorded

Compiled = Any
"""What `jax.jit` returns; it knows how often it was compiled."""


class Pieces(NamedTuple):
    """A tokens each of C prompts: where they go. Rows that are not needed repeat another one.

    Attributes:
        tokens: padded at the end with anything; what that writes is overwritten, or never seen.
        slots: of each row.
        starts: position of each row's first token.
    """

    tokens: Int[Array, "A C"]
    slots: Int[Array, "A"]
    starts: Int[Array, "A"]


def begin(model: Model, columns: int, ends: Params, pieces: Pieces) -> tuple[jax.Array, tuple[Rotation, ...]]:
    """Embeddings of the pieces, and the rotations of their positions."""
    positions = pieces.starts[:, None] + jnp.arange(pieces.tokens.shape[1])[None]
    return model.embed(ends, pieces.tokens), model.rotations(positions, columns)


def read_layer(
    block: Block,
    record: bool,
    extent: int,
    last: bool,
    layer: Params,
    x: Float[Array, "A C D"],
    rotation: Rotation,
    keys: Float[Array, "S K H T"],
    values: Float[Array, "S K T H"],
    pieces: Pieces,
    window: Int[Array, ""],
) -> tuple[jax.Array | None, jax.Array, jax.Array, Observed]:
    """One layer over the pieces: `(x, keys, values, observed)`; of the last one, nothing is computed but what is asked.

    Args:
        record: tell what the layer observed.
        extent: columns to be looked at; no piece reaches beyond.
        window: tokens that each token sees, itself included.
    """
    A, C = pieces.tokens.shape
    positions = pieces.starts[:, None] + jnp.arange(C)[None]
    back = positions[:, :, None] - jnp.arange(extent)[None, None]
    visible = (back >= 0) & (back < window)

    def attend(q: Any, k: Any, v: Any, state: Any, *, sinks: Any = None) -> tuple[Any, Any]:
        keys, values = state
        for a in range(A):
            slot, start = pieces.slots[a], pieces.starts[a]
            keys = jax.lax.dynamic_update_slice(keys, k[a].transpose(1, 2, 0)[None], (slot, 0, 0, start))
            values = jax.lax.dynamic_update_slice(values, v[a].transpose(1, 0, 2)[None], (slot, 0, start, 0))
        own_k, own_v = keys[:, :, :, :extent][pieces.slots], values[:, :, :extent][pieces.slots]
        return cached_attention(q, own_k, own_v, visible, sinks), (keys, values)

    x, (keys, values), observed = block(layer, x, rotation, attend, (keys, values))
    return (None if last else x), keys, values, (observed if record else {})


class Reader:
    """The compiled programs that read. Shapes: rows, length and extent of the pieces, and columns of the cache.

    Args:
        model: the decoder.
        sharding: of the cache; None: it lies on one device.
        record: tell which experts the pieces' tokens went through.
    """

    def __init__(self, model: Model, sharding: NamedSharding | None, record: bool = False) -> None:
        pinned: Any = {} if sharding is None else {"out_shardings": (None, sharding, sharding, None)}
        self._recorded: Compiled | None = jax.jit(partial(recorded, model)) if record else None
        self._layers = layers_of(model)
        self._windows = [jnp.asarray(2**30 if layer.window is None else layer.window) for layer in self._layers]
        self._begin: Compiled = jax.jit(partial(begin, model), static_argnums=0)
        self._programs: dict[Block, Compiled] = {
            block: jax.jit(partial(read_layer, block, record), static_argnums=(0, 1), donate_argnums=(5, 6), **pinned)
            for block in {layer.block for layer in self._layers}
        }

    def __call__(
        self, params: Params, cache: Cache, pieces: Pieces, extent: int
    ) -> tuple[Cache, UInt[Array, "A C layers k"] | None]:
        """The cache with the pieces in it, and the experts, if they are recorded; the given cache is used up."""
        x, rotations = self._begin(cache.values[0].shape[2], params["ends"], pieces)
        keys, values, seen = [], [], []
        for number, (layer, window) in enumerate(zip(self._layers, self._windows, strict=True)):
            x, new_keys, new_values, observed = self._programs[layer.block](
                extent,
                number == len(self._layers) - 1,
                params["layers"][number],
                x,
                rotations[layer.rope],
                cache.keys[number],
                cache.values[number],
                pieces,
                window,
            )
            keys.append(new_keys)
            values.append(new_values)
            seen.append(observed)
        return Cache(tuple(keys), tuple(values)), None if self._recorded is None else self._recorded(seen)

    @property
    def programs(self) -> Sequence[Compiled]:
        """What was compiled."""
        return [self._begin, *self._programs.values(), *([] if self._recorded is None else [self._recorded])]
