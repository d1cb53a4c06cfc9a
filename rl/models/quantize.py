"""Frozen matrices in few bits, through qwix: a quarter (int8) or a seventh (nf4) of their float32 memory.

qwix's own way, a provider that rewrites a model's calls, knows flax modules; here its arithmetic on arrays is used, and
`project` in `rl.models.layers` reads a matrix back where it is multiplied, one layer at a time.
"""

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp

from rl.models.base import Model, Params
from rl.models.matrices import Matrix, matrices, path_name

KINDS = ("int8", "nf4")

BLOCK = 64
"""Inputs that share a scale in nf4, as in QLoRA; fewer where the axis is no multiple of them."""


@partial(jax.tree_util.register_dataclass, data_fields=("values", "scale"), meta_fields=("kind",))
@dataclass(frozen=True)
class Quantized:
    """A matrix in few bits, in its place among the parameters.

    Attributes:
        values: int8 like the matrix; for nf4 uint8, two neighbours of the last axis in a byte.
        scale: float32, as many axes as the matrix: one per output (int8), or per block of inputs and output (nf4).
        kind: "int8" or "nf4" (Dettmers et al. 2023, arXiv:2305.14314; the scales are not quantised again).
    """

    values: Any
    scale: Any
    kind: str

    def __getitem__(self, index: EllipsisType) -> "Quantized":
        return self  # how a module reads a parameter

    def dense(self) -> jax.Array:
        """The matrix in float32."""
        import qwix

        if self.kind == "int8":
            return qwix.dequantize(qwix.QArray(self.values, self.scale))
        pairs = jnp.stack([self.values & 15, self.values >> 4], axis=-1)
        values = pairs.reshape(*self.values.shape[:-1], -1).astype(jnp.uint4)
        return qwix.dequantize(qwix.QArray(values, self.scale, qtype="nf4"))


def quantize_matrix(weight: jax.Array, matrix: Matrix, kind: str) -> Quantized:
    """One matrix in few bits; largest value and scale per output, or per block of inputs and output."""
    import qwix

    first, last = matrix.shared, matrix.shared + matrix.inputs - 1
    weight = weight.astype(jnp.float32)
    if kind == "int8":
        apart = [axis for axis in range(weight.ndim) if not first <= axis <= last]
        found = qwix.quantize(weight, jnp.int8, channelwise_axes=apart)
        return Quantized(found.qvalue, found.scale, kind)
    size = next(size for size in range(BLOCK, 0, -1) if weight.shape[last] % size == 0)
    apart = [axis for axis in range(weight.ndim) if axis != last]
    found = qwix.quantize(weight, "nf4", channelwise_axes=apart, tiled_axes={last: size})
    pairs = found.qvalue.astype(jnp.uint8).reshape(*weight.shape[:-1], -1, 2)
    return Quantized(pairs[..., 0] | (pairs[..., 1] << 4), found.scale, kind)


def quantize(model: Model, params: Params, kind: str) -> Params:
    """Parameters whose matrices are `Quantized`; embeddings, head, norms, biases and routers stay as they are.

    Raises:
        ValueError: for a kind that is none of `KINDS`; for nf4 of a matrix whose last axis is odd; without qwix.
    """
    if kind not in KINDS:
        raise ValueError(f"quantisation {kind!r}; expected one of {', '.join(KINDS)}")
    if find_spec("qwix") is None:
        raise ValueError(f"{kind} needs qwix, which is not installed: pip install 'upswing[quantize]'")
    found = matrices(model)
    odd = [path for path, matrix in found.items() if kind == "nf4" and matrix.shape[-1] % 2]
    if odd:
        raise ValueError(f"nf4 keeps two neighbours in a byte, but '{odd[0]}' ends in {found[odd[0]].shape[-1]}")
    compiled = jax.jit(quantize_matrix, static_argnums=(1, 2))

    def one(path: Any, leaf: jax.Array) -> Any:
        matrix = found.get(path_name(path))
        return leaf if matrix is None else compiled(leaf, matrix, kind)

    return jax.tree.map_with_path(one, params)
