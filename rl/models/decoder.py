"""Modules into a `Model`, and a `Model` over packed rows of tokens.

The layers of a stack are scanned, so that the compiled program does not grow with depth. A block does not know how
attention sees the past: it is handed `attend`, so that training (packed rows) and sampling (a cache) run the very same
arithmetic.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rl.models.attention import packed_attention
from rl.models.base import Attend, Block, DecoderConfig, Model, Observed, Params, Rotation, Stack
from rl.models.layers import RMSNorm, weight
from rl.models.replay import by_stack

UNROLLED_LAYERS = 4
"""Up to this depth the layers stand one after the other in the compiled program, instead of in a loop."""


class Ends(nnx.Module):
    """Token embeddings, the last norm, and the head (tied to the embeddings or its own)."""

    def __init__(self, config: DecoderConfig, norm: RMSNorm) -> None:
        V, D = config.vocab_size, config.width
        self.embed = weight((V, D), ("vocab", "embed"), D**-0.5)
        self.norm = norm
        if not config.tie_embeddings:
            self.head = weight((V, D), ("vocab", "embed"), D**-0.5)


class Run(NamedTuple):
    """Consecutive layers of one kind, before they are assembled: where they lie in the parameters, and how many."""

    name: str
    make: Callable[[], nnx.Module]
    size: int


def assemble(
    config: DecoderConfig,
    runs: Sequence[Run],
    *,
    norm: Callable[[], RMSNorm] | None = None,
    embed_scale: float = 1.0,
) -> Model:
    """The model of this shape. Nothing is allocated until `init` is called.

    Args:
        config: the shape.
        runs: its layers; a module of `make` is called as `Block` is, without the parameters.
        norm: makes the last norm; None: a plain RMSNorm.
        embed_scale: multiplies embeddings where they enter, rounded to the compute dtype first.
    """
    last_norm = norm or (lambda: RMSNorm(config.width, config.norm_eps))
    ends_graph, ends_state = nnx.split(nnx.eval_shape(lambda: Ends(config, last_norm())))
    places: Params = _places(ends_state)
    stacks, first = [], 0
    for run in runs:
        graph, state = nnx.split(nnx.eval_shape(run.make))
        count = run.size
        places[run.name] = jax.tree.map(lambda p: p.stacked(count), _places(state))  # noqa: B023
        stacks.append(Stack(run.name, _pure(graph), range(first, first + count)))
        first += count
    if first != config.layers:
        raise ValueError(f"the stacks hold {first} layers, the config says {config.layers}")

    def init(key: jax.Array) -> Params:
        # One draw for all weights: a random program per shape takes XLA seconds to compile.
        leaves, treedef = jax.tree.flatten(places)
        ends = list(itertools.accumulate(math.prod(p.shape) for p in leaves))
        noise = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])
        values = [
            jnp.ones(p.shape) if p.std is None else p.std * x.reshape(p.shape)
            for p, x in zip(leaves, noise, strict=True)
        ]
        return jax.tree.unflatten(treedef, values)

    dtype = jnp.dtype(config.compute_dtype)
    names = tuple(_places(ends_state))

    def ends(params: Params) -> Ends:
        return nnx.merge(ends_graph, nnx.State({name: params[name] for name in names}))

    def embed(params: Params, tokens: jax.Array) -> jax.Array:
        x = params["embed"][tokens].astype(dtype)
        return x if embed_scale == 1.0 else x * jnp.asarray(embed_scale, dtype)

    def head(params: Params) -> jax.Array:
        return jnp.asarray(params["embed" if config.tie_embeddings else "head"])

    axes = jax.tree.map(lambda p: p.axes, places)
    return Model(config, init, axes, embed, tuple(stacks), lambda params, x: ends(params).norm(x), head)


def hidden_states(
    model: Model,
    params: Params,
    tokens: Int[Array, "R L"],
    positions: Int[Array, "R L"],
    segment_ids: Int[Array, "R L"],
    experts: Int[Array, "R L layers k"] | None = None,
    *,
    remat: bool = False,
) -> tuple[Float[Array, "R L D"], dict[str, Observed]]:
    """Runs packed rows through all layers; a token sees earlier tokens of its own segment only.

    Also returned is what the blocks of each stack observed, stacked over its layers: for a mixture of experts
    `experts [layers, R, L, k]`.

    Args:
        positions: below L.
        segment_ids: 0 is padding; equal positive ids within a row belong together.
        experts: those that each token goes through in each layer that has any, as `rl.models.replay.chosen` returns
            them; -1 where it chooses freely. Its own choices fed back change no bit.
        remat: recompute activations in the backward pass instead of keeping them.
    """
    attend_of = packed_attention(segment_ids)
    rotations = model.rotations(positions, tokens.shape[1])
    x = model.embed(params, tokens)
    observed: dict[str, Observed] = {}
    given = {} if experts is None else by_stack(model, experts)
    for stack in model.stacks:
        x, observed[stack.name] = _run_stack(
            model.config, stack, params[stack.name], x, rotations, attend_of, given.get(stack.name), remat
        )
    return model.norm(params, x), observed


def _run_stack(
    config: DecoderConfig,
    stack: Stack,
    weights: Params,
    x: jax.Array,
    rotations: Sequence[Rotation],
    attend_of: Callable[[Any], Attend],
    experts: jax.Array | None,
    remat: bool,
) -> tuple[jax.Array, Observed]:
    windows = [config.windows[i] for i in stack.layers]
    ropes = [config.layer_ropes[i] for i in stack.layers]
    equal = len(set(windows)) == 1 and len(set(ropes)) == 1
    turns = Rotation(*(jnp.stack(part) for part in zip(*rotations, strict=True)))
    everything = x.shape[1]

    def layer(x: jax.Array, this: tuple[Params, jax.Array, jax.Array, jax.Array | None]) -> tuple[jax.Array, Observed]:
        own, window, rope, given = this
        if equal:
            attend, rotation = attend_of(windows[0]), rotations[ropes[0]]
        else:  # the loop has one body for all its layers
            attend, rotation = attend_of(window), Rotation(turns.cos[rope], turns.sin[rope])
        x, _, seen = stack.block(own, x, rotation, attend, None, given)
        return x, seen

    # A loop copies what each layer keeps for the backward pass into stacks: a tenth of an update of four layers. Four
    # layers written out compile no slower than the loop; deep models loop, so that they compile no slower either.
    unroll = config.layers <= UNROLLED_LAYERS
    step = jax.checkpoint(layer) if remat else layer
    reach = jnp.asarray([everything if window is None else window for window in windows], jnp.int32)
    return jax.lax.scan(step, x, (weights, reach, jnp.asarray(ropes, jnp.int32), experts), unroll=unroll)


def _pure(graph: Any) -> Block:
    def block(
        layer: Params,
        x: jax.Array,
        rotation: Rotation,
        attend: Attend,
        state: Any,
        experts: jax.Array | None = None,
    ) -> tuple[jax.Array, Any, Observed]:
        given = () if experts is None else (experts,)
        out: tuple[jax.Array, Any, Observed] = nnx.merge(graph, nnx.State(layer))(x, rotation, attend, state, *given)
        return out

    return block


@dataclass(frozen=True)
class _Place:
    """What is known of a parameter before it has a value; `std` None means it starts at one."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    std: float | None

    def stacked(self, layers: int) -> "_Place":
        return _Place((layers, *self.shape), ("layers", *self.axes), self.std)


def _places(state: nnx.State[Any, Any]) -> Params:
    """The parameters of an abstract module as nested dictionaries of `_Place`."""
    tree: dict[Any, Any] = {}
    for path, variable in nnx.to_flat_state(state):
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        meta = variable.get_metadata()
        node[path[-1]] = _Place(variable.get_value().shape, meta["axes"], meta["std"])
    return tree
