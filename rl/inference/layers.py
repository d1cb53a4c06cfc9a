"""The layers of a model one by one, and its parameters as the engine runs them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rl.models.base import Block, Model, Params
from rl.models.matrices import matrices, path_name
from rl.models.turned import Turned

LARGE = 2**17
"""Numbers in a matrix (half a megabyte) from which on packing it takes as long as multiplying a few rows by it."""


class Layer(NamedTuple):
    """What one layer computes: its block, which rotation it uses, and how many tokens it sees (None: all)."""

    block: Block
    rope: int
    window: int | None


def layers_of(model: Model) -> list[Layer]:
    """All layers, in order."""
    c = model.config
    return [Layer(stack.block, c.layer_ropes[i], c.windows[i]) for stack in model.stacks for i in stack.layers]


def make_unstack(model: Model, turn: bool) -> Callable[[Params], Params]:
    """`unstack(params) -> params` as the engine wants them, made once per policy version and not once per token:

    {"ends": what is no layer, "layers": a list of them}; matrices in the dtype they are multiplied in, and the other
    way round where that is faster.

    Args:
        turn: see `Turned`.
    """
    known = matrices(model)
    names = {stack.name for stack in model.stacks}
    dtype = jnp.dtype(model.config.compute_dtype)

    def one(stack: str, path: tuple[Any, ...], stacked: jax.Array, number: int) -> Any:
        matrix = known.get(f"{stack}/{path_name(path)}")
        own = stacked[number]
        if matrix is None:
            return own
        own = own.astype(dtype)
        return Turned.of(own, matrix.inputs) if turn and matrix.shared == 1 and own.size >= LARGE else own

    def unstack(params: Params) -> Params:
        layers = [
            jax.tree_util.tree_map_with_path(
                lambda path, a: one(stack.name, path, a, number),  # noqa: B023
                params[stack.name],
            )
            for stack in model.stacks
            for number in range(len(stack.layers))
        ]
        ends = {name: value for name, value in params.items() if name not in names}
        ends |= {name: ends[name].astype(dtype) for name in ("embed", "head") if name in ends}
        return {"ends": ends, "layers": layers}

    return unstack
