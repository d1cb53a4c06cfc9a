"""Where the cache lies when the parameters are spread over several devices."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from rl.models.base import Model, Params


def cache_sharding(model: Model, params: Params) -> NamedSharding | None:
    """Kv heads over the mesh axis that the parameters have them on, if it divides them; None for a single device.

    Keys and values have the same layout up to their last two axes, which are whole everywhere.
    """
    names = jax.tree.leaves(model.axes, is_leaf=lambda x: isinstance(x, tuple))
    leaves = jax.tree.leaves(params)
    shardings = [leaf.sharding for leaf in leaves if isinstance(leaf.sharding, NamedSharding)]
    if not shardings or shardings[0].mesh.size == 1:
        return None
    mesh = shardings[0].mesh
    axis: Any = None
    if len(leaves) == len(names):  # none is quantised
        for leaf, axes in zip(leaves, names, strict=True):
            if "kv_heads" in axes and isinstance(leaf.sharding, NamedSharding):
                spec = (*leaf.sharding.spec, *(None,) * len(axes))
                axis = axis or spec[axes.index("kv_heads")]
    if axis is None or model.config.kv_heads % mesh.shape[axis]:
        return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec(None, axis))
