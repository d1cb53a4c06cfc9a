"""Matrices that lie the other way round, for products with few rows on a CPU."""

import math
from dataclasses import dataclass
from functools import partial
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp


@partial(jax.tree_util.register_dataclass, data_fields=("values",), meta_fields=("shape",))
@dataclass(frozen=True)
class Turned:
    """A matrix in its place among the parameters.

    XLA's CPU backend packs the right side of a product before it multiplies. With a few rows of activations and a whole
    weight that takes as long as the product; with the weight on the left, only the activations are packed.

    Attributes:
        values: `[outputs, inputs]`.
        shape: `[*inputs, *outputs]`, as it was.
    """

    values: Any
    shape: tuple[int, ...]

    @staticmethod
    def of(matrix: jax.Array, inputs: int) -> "Turned":
        """The same matrix; its first `inputs` axes are contracted."""
        return Turned(matrix.reshape(math.prod(matrix.shape[:inputs]), -1).T, matrix.shape)

    def __getitem__(self, index: EllipsisType) -> "Turned":
        return self  # how a module reads a parameter

    def after(self, rows: jax.Array) -> jax.Array:
        """`rows @ matrix`, for `rows [n, inputs]`."""
        return jnp.einsum("FD,SD->FS", self.values.astype(rows.dtype), rows).T
