"""From a checkpoint's tensors to parameters that lie where they belong, one tensor at a time."""

import re
from collections.abc import Callable, Sequence
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from envs.errors import ConfigError
from rl.models.base import Model, Params
from rl.models.family import Family
from rl.weights.layout import Axes, Place, arranged, flat, nested, places
from rl.weights.source import Source

FLOATS = ("float32", "bfloat16", "float16")

ROTARY = re.compile(r".*\.rotary_emb\.inv_freq")
"""Buffers that old checkpoints carry along; they follow from the config."""

TIED = {"lm_head.weight": "model.embed_tokens.weight"}


def load(source: Source, family: Family, model: Model, shardings: Params, dtype: str = "float32") -> Params:
    """The parameters that a checkpoint holds.

    A parameter that is stacked from many tensors is allocated once, on its devices, and each layer is written into it
    in place: on the host there is never more than one layer besides what lies on its devices.

    Args:
        source: the checkpoint.
        family: whose it is.
        model: of the checkpoint's shape.
        shardings: one per parameter.
        dtype: of the parameters.

    Raises:
        ConfigError: when tensors are missing, too many, or of another shape or dtype; all of them are named.
    """
    layout = places(family, model)
    check(source, layout)
    shapes, where = flat(jax.eval_shape(model.init, jax.random.key(0))), flat(shardings)
    found = {}
    for place in layout:
        like = jax.ShapeDtypeStruct(shapes[place.path].shape, jnp.dtype(dtype), sharding=where[place.path])
        found[place.path] = (_alone if place.layers is None else _stacked)(source, place, like)
    return nested({path: found[path] for path in shapes})


def check(source: Source, layout: Sequence[Place]) -> None:
    """Holds what there is against what is expected.

    Raises:
        ConfigError: naming every tensor that is missing, too much, or of another shape or dtype.
    """
    expected = {name: place.shape for place in layout for names in place.names for name in names}
    problems = []
    for name, shape in expected.items():
        info = source.tensors.get(name)
        if info is None:
            problems.append(f"{name} is missing; expected shape {shape}")
        elif info.shape != shape:
            problems.append(f"{name} has shape {info.shape}; expected {shape}")
        elif info.dtype not in FLOATS:
            problems.append(f"{name} has dtype {info.dtype}; expected one of {', '.join(FLOATS)}")
    problems += [
        f"{name} of shape {source.tensors[name].shape} {reason}"
        for name in source.tensors.keys() - expected.keys()
        if (reason := _surplus(source, name, expected))
    ]
    if problems:
        raise ConfigError(
            f"{source.path} does not hold the model that its config describes; {len(problems)} tensors do not fit:\n  "
            + "\n  ".join(sorted(problems))
        )


def _surplus(source: Source, name: str, expected: dict[str, tuple[int, ...]]) -> str | None:
    """Why a tensor that the model has no place for is no harmless one; None if it is harmless."""
    if ROTARY.fullmatch(name) or _predicts_further(source, name):
        return None
    twin = TIED.get(name)
    if twin is None or twin not in expected or twin not in source.tensors:
        return "is no part of the model"
    if source.tensors[name] == source.tensors[twin] and np.array_equal(source.read(name), source.read(twin)):
        return None
    return f"differs from {twin}, but tie_word_embeddings says that they are one"


def _predicts_further(source: Source, name: str) -> bool:
    """Whether a tensor belongs to the layers that predict the token after the next one, which are not used here."""
    first, more = source.config.get("num_hidden_layers", 0), source.config.get("num_nextn_predict_layers") or 0
    number = re.match(r"model\.layers\.(\d+)\.", name)
    return number is not None and first <= int(number[1]) < first + more


def _alone(source: Source, place: Place, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A parameter that no layer shares."""
    piece = _piece(source, place, 0, like.sharding)
    if piece.shape == like.shape and piece.dtype == like.dtype:
        return piece
    return jax.block_until_ready(_maker(place.axes, like.shape, like.dtype, like.sharding)(piece))


def _stacked(source: Source, place: Place, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A parameter with a part from each layer."""
    stack = jnp.zeros(like.shape, like.dtype, device=like.sharding)
    write = _writer(place.axes, like.sharding)
    for layer in range(len(place.names)):
        # Waiting keeps the host from reading ahead of the devices, layer upon layer.
        stack = jax.block_until_ready(write(stack, _piece(source, place, layer, like.sharding), layer))
    return stack


@cache
def _maker(axes: Axes, shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding) -> Callable[..., jax.Array]:
    """Makes a parameter of its tensor."""
    return jax.jit(lambda piece: arranged(piece, axes, shape).astype(dtype), out_shardings=sharding)


@cache
def _writer(axes: Axes, sharding: NamedSharding) -> Callable[..., jax.Array]:
    """Writes a layer's tensor into a parameter, in place."""

    @partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def write(stack: jax.Array, piece: jax.Array, layer: jax.Array) -> jax.Array:
        part = arranged(piece, axes, stack.shape[1:]).astype(stack.dtype)
        return jax.lax.dynamic_update_index_in_dim(stack, part, layer, 0)

    return write


def _piece(source: Source, place: Place, layer: int, sharding: NamedSharding) -> jax.Array:
    """What a layer (or no layer) has in a checkpoint: a tensor, or those of all experts in a stack."""
    names = place.names[layer]
    if place.experts:
        first = source.read(names[0])
        host = np.empty((len(names), *place.shape), first.dtype)
        for number, name in enumerate(names):
            host[number] = first if number == 0 else source.read(name)
    else:
        host = source.read(names[0])
    # From a callback, because every process of a mesh over several hosts has the tensor already.
    return jax.make_array_from_callback(host.shape, place.sharding(sharding), lambda index: host[index])
