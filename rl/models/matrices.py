"""Which of a model's parameters are matrices: what adapters stand beside, and what is quantised."""

from typing import Any, NamedTuple

import jax

from rl.models.base import Model

SHARED_AXES = ("layers", "experts")
"""Leading axes that number matrices."""

HEAD_AXES = ("heads", "kv_heads", "head")
"""A weight that begins with these contracts all of them: attention's output."""


class Matrix(NamedTuple):
    """A weight that multiplies activations.

    Attributes:
        shape: `[*shared, *inputs, *outputs]`.
        axes: their logical names.
        shared: how many leading axes number matrices.
        inputs: how many axes after them are contracted.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    shared: int
    inputs: int


def matrices(model: Model) -> dict[str, Matrix]:
    """The matrices of a model's layers by path ("layers/attention/q"): no norms, no biases, no routers."""
    found = {}
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    for stack in model.stacks:
        axes = jax.tree.leaves(model.axes[stack.name], is_leaf=lambda x: isinstance(x, tuple))
        for (path, like), names in zip(jax.tree.leaves_with_path(shapes[stack.name]), axes, strict=True):
            shared = _leading(names, SHARED_AXES)
            inputs = _leading(names[shared:], HEAD_AXES) or 1
            if shared + inputs < len(names) and names[-1] != "experts":
                found[f"{stack.name}/{path_name(path)}"] = Matrix(like.shape, names, shared, inputs)
    return found


def path_name(path: tuple[Any, ...]) -> str:
    """A path of `jax.tree` through nested dictionaries as text: "layers/attention/q"."""
    return "/".join(str(key.key) for key in path)


def _leading(names: tuple[str, ...], among: tuple[str, ...]) -> int:
    return next((i for i, name in enumerate(names) if name not in among), len(names))
