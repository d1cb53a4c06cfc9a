"""How the parameters of a model lie in a checkpoint: which tensor holds which part of which parameter, and turned how.

Pure: from a family's table of `Stored` and the model's shapes, for the loader and the writer alike.
"""

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from rl.models.base import Model, Params
from rl.models.family import Family, Stored

FLAT = {("heads", "head"), ("kv_heads", "head")}
"""Neighbouring logical axes that are one axis in a checkpoint."""

Axes = tuple[tuple[int, ...], ...]
"""For each axis of a tensor, the axes of the parameter (of one layer and expert) that it is made of."""


class Place(NamedTuple):
    """Where a parameter lies: in one tensor, or stacked from one per layer, per expert, or per layer and expert.

    Attributes:
        path: in the parameters, as keys.
        names: of its tensors, `[layers or 1][experts or 1]`.
        layers: those that its first axis numbers; None: it belongs to no layer.
        experts: its next axis numbers experts that have a tensor each.
        shape: of each tensor.
        axes: of each tensor.
    """

    path: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    layers: range | None
    experts: bool
    shape: tuple[int, ...]
    axes: Axes

    @property
    def leading(self) -> int:
        """How many axes of the parameter number its tensors."""
        return (self.layers is not None) + self.experts

    def sharding(self, parameter: NamedSharding) -> NamedSharding:
        """How a tensor, or one per expert in a stack, is laid out to become part of a parameter without moving."""
        spec = [*parameter.spec, *(None,) * (self.leading + sum(map(len, self.axes)) - len(parameter.spec))]
        own = spec[self.leading :]
        experts = [spec[self.leading - 1]] if self.experts else []
        return NamedSharding(parameter.mesh, PartitionSpec(*experts, *(own[group[0]] for group in self.axes)))


def arranged(tensor: jax.Array, axes: Axes, shape: tuple[int, ...]) -> jax.Array:
    """A tensor, or one per expert in a stack, as the part of the parameter that it is.

    Args:
        tensor: as it is stored; the experts first.
        axes: of its place.
        shape: of the part; the experts first.
    """
    order = [axes.index(group) for group in sorted(axes)]
    first = tensor.ndim - len(order)
    return tensor.transpose(*range(first), *(first + axis for axis in order)).reshape(shape)


def restored(part: jax.Array, axes: Axes, shape: tuple[int, ...]) -> jax.Array:
    """A part of a parameter as the tensor of that shape which stores it."""
    return part.transpose(*(axis for group in axes for axis in group)).reshape(shape)


def places(family: Family, model: Model) -> list[Place]:
    """Where all parameters of a model lie; those that belong to no layer come first.

    Raises:
        ValueError: when the family's table and the model's parameters do not name the same.
    """
    shapes = flat(jax.eval_shape(model.init, jax.random.key(0)))
    axes = flat(model.axes)
    table = family.tensors(model.config)
    if odd := set(table) ^ {"/".join(path) for path in shapes}:
        raise ValueError(f"the tensors of {family.name} and its parameters differ in {', '.join(sorted(odd))}")
    layers = {stack.name: stack.layers for stack in model.stacks}
    found = [_place(path, shapes[path].shape, axes[path], table["/".join(path)], layers) for path in shapes]
    return sorted(found, key=lambda place: place.layers is not None)


def _place(
    path: tuple[str, ...],
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    stored: Stored,
    layers: Mapping[str, range],
) -> Place:
    numbers, experts = layers.get(path[0]), "{expert}" in stored.name
    leading = (numbers is not None) + experts
    own, groups = axes[leading:], list[tuple[int, ...]]()
    for axis in range(len(own)):
        if groups and own[axis - 1 : axis + 1] in FLAT:
            groups[-1] += (axis,)
        else:
            groups.append((axis,))
    if stored.transposed:
        groups[-2:] = groups[:-3:-1]
    names = tuple(
        tuple(stored.name.format(layer=layer, expert=expert) for expert in range(shape[leading - 1] if experts else 1))
        for layer in numbers or range(1)
    )
    sizes = tuple(prod(shape[leading + axis] for axis in group) for group in groups)
    return Place(path, names, numbers, experts, sizes, tuple(groups))


def flat(tree: Params) -> dict[tuple[str, ...], Any]:
    """The leaves of nested dictionaries by their path."""
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))
    return {tuple(key.key for key in path): leaf for path, leaf in pairs}


def nested(leaves: Mapping[tuple[str, ...], Any]) -> Params:
    """The opposite of `flat`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree
