"""Low-rank adapters: what a frozen matrix multiplies, and beside it two thin trained ones (Hu et al. 2021,
arXiv:2106.09685; initialised and scaled as in Hugging Face PEFT).

Among the parameters an adapted matrix is one leaf, `Adapted`, which `project` in `rl.models.layers` multiplies as
`x @ base + scale * (x @ a) @ b`. Adding `a @ b` to the weights in every step would need no such leaf and no hook, but a
gradient of the size of every matrix, which is a third of an update's arithmetic and, for the layers' loop, all of them
kept for the backward pass. Engines and exports take the sum (`dense`), or the adapter alone where they hold the rest
(`bare`).

Training takes parameters apart (`split`) into the adapter, which the optimizer, the checkpoints and the donated state
hold, and the rest, which is an argument of the compiled update and comes out of nothing.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import EllipsisType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rl.models.base import Model, Params
from rl.models.matrices import Matrix, matrices
from rl.models.quantize import Quantized


@partial(jax.tree_util.register_dataclass, data_fields=("base", "a", "b"), meta_fields=("scale",))
@dataclass(frozen=True)
class Adapted:
    """A matrix and its adapter, in the matrix's place among the parameters.

    Attributes:
        base: `[*shared, *inputs, *outputs]`, an array or `Quantized`.
        a: `[*shared, *inputs, r]`.
        b: `[*shared, r, *outputs]`.
        scale: alpha / r, or alpha / sqrt(r).
    """

    base: Any
    a: Any
    b: Any
    scale: float

    def __getitem__(self, index: EllipsisType) -> "Adapted":
        return self  # how a module reads a parameter

    def dense(self) -> jax.Array:
        """The matrix it acts as; in the adapter's dtype if that is the wider, for half of what is added is rounding."""
        base = self.base.dense() if isinstance(self.base, Quantized) else self.base
        shared = self.a.ndim + self.b.ndim - base.ndim - 2
        many, rank = self.a.shape[:shared], self.a.shape[-1]
        product = jnp.matmul(self.a.reshape(*many, -1, rank), self.b.reshape(*many, rank, -1))
        dtype = jnp.promote_types(base.dtype, product.dtype)
        return base.astype(dtype) + (self.scale * product).reshape(base.shape).astype(dtype)


class Lora(NamedTuple):
    """Adapters for one model, as a value.

    Attributes:
        scale: of what they add.
        init: `init(key) -> adapter`: {"layers": {"attention": {"q": {"a", "b"}, …}}}; they add nothing yet.
        axes: logical axis names, as a tree of tuples shaped like the adapter.
    """

    scale: float
    init: Callable[[jax.Array], Params]
    axes: Params


def lora(model: Model, rank: int, alpha: float, targets: str, *, root: bool = False) -> Lora:
    """Adapters beside the matrices whose path, or the end of it, matches `targets`.

    Args:
        rank: of what an adapter adds.
        alpha: the scale is `alpha / rank`.
        targets: a regular expression for whole names: "attention/(q|v)" matches "layers/attention/q".
        root: the scale is `alpha / sqrt(rank)` (Kalajdzievski 2023, arXiv:2312.03732; "rslora" in PEFT).

    Raises:
        ValueError: for a rank below 1, an expression that cannot be read, or one that matches no matrix.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; expected at least 1")
    try:
        pattern = re.compile(f"(?:.*/)?(?:{targets})")
    except re.error as error:
        raise ValueError(f"targets is '{targets}', which is no regular expression: {error}") from error
    known = matrices(model)
    chosen = {path: matrix for path, matrix in known.items() if pattern.fullmatch(path)}
    if not chosen:
        raise ValueError(f"targets is '{targets}', which matches none of the model's matrices: {', '.join(known)}")

    shapes = {path: _thin(matrix, matrix.shape, rank) for path, matrix in chosen.items()}

    def init(key: jax.Array) -> Params:
        # One draw for all: a random program per shape takes XLA seconds to compile.
        ends = list(itertools.accumulate(math.prod(thin["a"]) for thin in shapes.values()))
        noise = jnp.split(jax.random.uniform(key, (ends[-1],), minval=-1.0, maxval=1.0), ends[:-1])
        adapter = {}
        for (path, matrix), x in zip(chosen.items(), noise, strict=True):
            fan_in = math.prod(matrix.shape[matrix.shared : matrix.shared + matrix.inputs])
            thin = shapes[path]
            adapter[path] = {"a": x.reshape(thin["a"]) * fan_in**-0.5, "b": jnp.zeros(thin["b"])}
        return nested(adapter)

    axes = nested({path: _thin(matrix, matrix.axes, "rank") for path, matrix in chosen.items()})
    return Lora(alpha / (math.sqrt(rank) if root else rank), init, axes)


def adapt(params: Params, adapter: Params, scale: float) -> Params:
    """The parameters with an adapter beside its matrices: what the model computes with."""
    return _beside(params, adapter, lambda base, own: Adapted(base, own["a"], own["b"], scale))


def split(params: Params) -> tuple[Params, Params | None]:
    """What is trained, and what is not: the adapter and the rest; or everything and None, if nothing is adapted."""
    adapter = _adapters(params)
    if adapter is None:
        return params, None
    return adapter, _beside(params, adapter, lambda leaf, _: replace(leaf, a=None, b=None))


def join(trained: Params, frozen: Params | None) -> Params:
    """What `split` took apart."""
    if frozen is None:
        return trained
    return _beside(frozen, trained, lambda leaf, own: replace(leaf, a=own["a"], b=own["b"]))


def adapted(params: Params) -> list[Adapted]:
    """The matrices that have an adapter."""
    return [leaf for leaf in jax.tree.leaves(params, is_leaf=_is_adapted) if _is_adapted(leaf)]


def bare(params: Params) -> Params:
    """The parameters without their adapters, which are what stays as it is while those are trained."""
    return jax.tree.map(lambda leaf: leaf.base if _is_adapted(leaf) else leaf, params, is_leaf=_is_adapted)


def dense(params: Params) -> Params:
    """Plain arrays: dequantised, and adapters added to their matrices, in one compiled program.

    Arrays among the parameters are passed on, not copied.
    """
    leaves, treedef = jax.tree.flatten(params, is_leaf=_stands_in)
    arrays = iter(_dense([leaf for leaf in leaves if _stands_in(leaf)]))
    return jax.tree.unflatten(treedef, [next(arrays) if _stands_in(leaf) else leaf for leaf in leaves])


@jax.jit
def _dense(leaves: list[Any]) -> list[jax.Array]:
    return [leaf.dense() for leaf in leaves]


def _is_adapted(leaf: Any) -> bool:
    return isinstance(leaf, Adapted)


def _stands_in(leaf: Any) -> bool:
    return isinstance(leaf, Adapted | Quantized)


def _thin(matrix: Matrix, whole: tuple[Any, ...], rank: Any) -> dict[str, tuple[Any, ...]]:
    """Shape or axes of the two thin matrices, from those of the whole one."""
    cut = matrix.shared + matrix.inputs
    return {"a": (*whole[:cut], rank), "b": (*whole[: matrix.shared], rank, *whole[cut:])}


def _adapters(params: Params) -> Params | None:
    if isinstance(params, Adapted):
        return {"a": params.a, "b": params.b}
    if not isinstance(params, Mapping):
        return None
    found = {name: _adapters(child) for name, child in params.items()}
    return {name: child for name, child in found.items() if child is not None} or None


def _beside(params: Params, adapter: Params, put: Callable[[Any, Params], Adapted]) -> Params:
    """The parameters with `put(leaf, {"a", "b"})` wherever the adapter has some."""
    if not isinstance(params, Mapping):
        return put(params, adapter)
    return {n: _beside(child, adapter[n], put) if n in adapter else child for n, child in params.items()}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"layers/attention/q": x} as {"layers": {"attention": {"q": x}}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
