"""The layers of a model one by one, as the engine runs them."""

from typing import NamedTuple

import jax

from rl.models.base import Block, Model, Params


class Layer(NamedTuple):
    """What one layer computes: its block, which rotation it uses, and how many tokens it sees (None: all)."""

    block: Block
    rope: int
    window: int | None


def layers_of(model: Model) -> list[Layer]:
    """All layers, in order."""
    c = model.config
    return [Layer(stack.block, c.layer_ropes[i], c.windows[i]) for stack in model.stacks for i in stack.layers]


def unstack(model: Model, params: Params) -> Params:
    """Parameters as the engine wants them: a list of layers, cut once per policy version and not once per token."""
    names = {stack.name for stack in model.stacks}
    layers = [
        jax.tree.map(lambda a: a[i], params[stack.name])  # noqa: B023
        for stack in model.stacks
        for i in range(len(stack.layers))
    ]
    return {**{name: value for name, value in params.items() if name not in names}, "layers": layers}
