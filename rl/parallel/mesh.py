"""The device mesh, and where each array lies on it."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from envs.errors import ConfigError
from rl.models.base import Params
from rl.types import Batch

Rules = Mapping[str, str | None]
"""Logical axis -> mesh axis. What is not listed is on every device."""


def make_mesh(axes: Mapping[str, int]) -> Mesh:
    """A mesh over the first devices there are; an axis of -1 takes all that remain.

    Raises:
        ConfigError: when there are too few devices.
    """
    devices = jax.devices()
    fixed = prod(size for size in axes.values() if size != -1)
    sizes = {name: len(devices) // fixed if size == -1 else size for name, size in axes.items()}
    needed = prod(sizes.values())
    if needed < 1 or needed > len(devices):
        shape = ", ".join(f"{name}={size}" for name, size in axes.items())
        raise ConfigError(
            f"hardware.mesh asks for {shape}, {max(needed, fixed)} devices, but there are {len(devices)} "
            f"({devices[0].platform}); choose another hardware=… or set hardware.mesh.AXIS"
        )
    types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices[:needed])


def parameter_shardings(mesh: Mesh, axes: Params, rules: Rules) -> Params:
    """A sharding per parameter from its logical axes (`Model.axes`).

    A mesh axis splits one axis of an array at most: the first that asks for it. So experts and width may lie on the
    same mesh axis, and a parameter without experts is split by its width.

    Raises:
        ConfigError: for a rule that names a mesh axis that does not exist.
    """
    for logical, axis in rules.items():
        if axis is not None and axis not in mesh.axis_names:
            known = ", ".join(mesh.axis_names)
            raise ConfigError(f"hardware.rules.{logical} is '{axis}', which is no axis of the mesh; known: {known}")

    def sharding(logical: tuple[str, ...]) -> NamedSharding:
        wanted = [rules.get(name) for name in logical]
        return NamedSharding(mesh, PartitionSpec(*(a if a not in wanted[:i] else None for i, a in enumerate(wanted))))

    return jax.tree.map(sharding, axes, is_leaf=lambda x: isinstance(x, tuple))


def batch_constraint(mesh: Mesh, rules: Rules) -> Callable[[Batch], Batch]:
    """Pins the rows of a batch to the mesh axis of the logical axis "batch"."""

    def constrain(batch: Batch) -> Batch:
        def pin(a: jax.Array) -> jax.Array:
            spec = PartitionSpec(rules.get("batch"), *(None,) * (a.ndim - 1)) if a.ndim else PartitionSpec()
            return jax.lax.with_sharding_constraint(a, NamedSharding(mesh, spec))

        return jax.tree.map(pin, batch)

    return constrain


def replicated(mesh: Mesh, tree: Any) -> Any:
    """A copy of every array on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
