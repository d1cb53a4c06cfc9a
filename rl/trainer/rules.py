"""How a gradient becomes a direction: the part of an optimizer that has a name. Its numbers are traced, too."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from rl.models.matrices import Matrix, path_name
from rl.types import Hyper


class Rule(NamedTuple):
    """`transform(hyper)` turns gradients into directions, which the learning rate scales; `hyper` holds its numbers."""

    transform: Callable[[Hyper], optax.GradientTransformation]
    hyper: Mapping[str, float]


def adamw(b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8) -> Rule:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Args:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
    """
    return Rule(_adam, {"b1": b1, "b2": b2, "eps": eps})


def sgd(momentum: float = 0.9, nesterov: bool = False) -> Rule:
    """Gradient descent with momentum: `m = g + momentum * m` (Sutskever et al. 2013), as in PyTorch without dampening.

    Args:
        momentum: share of the last direction that is kept; 0 is plain gradient descent.
        nesterov: look ahead: the direction is `g + momentum * m`.
    """
    return Rule(lambda hyper: optax.trace(decay=hyper["momentum"], nesterov=nesterov), {"momentum": momentum})


def sign(b1: float = 0.9, b2: float = 0.99) -> Rule:
    """Every number moves by the learning rate, up or down: Lion (Chen et al. 2023, arXiv:2302.06675).

    With `b1 = 0` it is signSGD (Bernstein et al. 2018, arXiv:1802.04434). Rates are three to ten times smaller than
    AdamW's.

    Args:
        b1: share of the mean gradient in what the sign is taken of; the rest is the gradient.
        b2: decay of the mean gradient.
    """
    return Rule(lambda hyper: optax.scale_by_lion(b1=hyper["b1"], b2=hyper["b2"]), {"b1": b1, "b2": b2})


def muon(
    momentum: float = 0.95,
    nesterov: bool = True,
    rms: float = 0.2,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    *,
    matrices: Mapping[str, Matrix],
) -> Rule:
    """Muon (Jordan 2024; optax.contrib): the momentum of a matrix, made orthogonal by five Newton-Schulz steps.

    Embeddings, output head, routers, norms and biases go by AdamW, whose rates fit matrices too: an orthogonal
    direction is scaled by `rms * sqrt(max(inputs, outputs))` (Liu et al. 2025, arXiv:2502.16982). Every layer and
    expert is a matrix of its own, the heads of a projection are one; so are the two halves of an adapter.

    Args:
        momentum: decay of the mean gradient of matrices.
        nesterov: mix the gradient into its mean once more.
        rms: root mean square of a matrix's direction, about.
        b1: AdamW's decay of the first moment.
        b2: AdamW's decay of the second moment.
        eps: added to the root of the second moment.
        matrices: the model's (`rl.models.matrices`).
    """

    def dimensions(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: _dimensions(matrices, path_name(path), leaf), params)

    def labels(params: Any) -> Any:
        def label(path: Any, leaf: Any) -> str:
            return "other" if _dimensions(matrices, path_name(path), leaf) is None else "matrix"

        return jax.tree_util.tree_map_with_path(label, params)

    def transform(hyper: Hyper) -> optax.GradientTransformation:
        orthogonal = optax.chain(
            scale_by_muon(beta=hyper["momentum"], nesterov=nesterov, weight_dimension_numbers=dimensions),
            optax.stateless(lambda steps, _: jax.tree.map(partial(_sized, hyper["rms"]), steps, dimensions(steps))),
        )
        return optax.partition({"matrix": orthogonal, "other": _adam(hyper)}, labels)

    return Rule(transform, {"momentum": momentum, "rms": rms, "b1": b1, "b2": b2, "eps": eps})


RULES: Mapping[str, Callable[..., Rule]] = {"adamw": adamw, "muon": muon, "sgd": sgd, "sign": sign}


def _sized(rms: Any, step: jax.Array, dimensions: MuonDimensionNumbers) -> jax.Array:
    """An orthogonal direction with this root mean square."""
    inputs, outputs = (math.prod(step.shape[axis] for axis in axes) for axes in dimensions)
    return step * (rms * math.sqrt(max(inputs, outputs)))


def _adam(hyper: Hyper) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=hyper["b1"], b2=hyper["b2"], eps=hyper["eps"])


def _dimensions(matrices: Mapping[str, Matrix], path: str, leaf: Any) -> MuonDimensionNumbers | None:
    """Which axes of a parameter are the inputs and outputs of a matrix; None if it is none."""
    parent, _, name = path.rpartition("/")
    if path in matrices:
        shared, inputs = matrices[path].shared, matrices[path].inputs
    elif parent in matrices and name in (
        "a",
        "b",
    ):  # of an adapter: [*shared, *inputs, rank], [*shared, rank, *outputs]
        shared, inputs = matrices[parent].shared, matrices[parent].inputs if name == "a" else 1
    else:
        return None
    ends = shared + inputs
    return MuonDimensionNumbers(tuple(range(shared, ends)), tuple(range(ends, leaf.ndim)))
