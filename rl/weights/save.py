"""From parameters to a Hugging Face directory that every other tool reads: safetensors, in shards with an index."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from envs.errors import ConfigError
from rl.models.base import Model, Params
from rl.models.family import Family
from rl.weights.layout import Axes, Place, flat, places, restored
from rl.weights.safetensors_dir import DTYPES, INDEX, WHOLE, SafetensorsDirectory

NAMES = {dtype: name for name, dtype in DTYPES.items()}

FLOATS = tuple(NAMES)
"""In the order in which `safetensors` lays them out: wider ones first."""

SHARD = 5_000_000_000
"""Bytes of a file, at most."""

BESIDE = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken"),
    *("*.jinja", "additional_chat_templates", "generation_config.json", "LICENSE*"),
)
"""What belongs to a checkpoint besides its config and its weights."""


class Tensor(NamedTuple):
    """A tensor of a checkpoint: of which place, which layer, which expert."""

    name: str
    place: Place
    layer: int
    expert: int
    dtype: str

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.place.shape) * np.dtype(self.dtype).itemsize

    def of(self, leaves: Mapping[tuple[str, ...], jax.Array]) -> jax.Array:
        """Takes it out of the parameters by their paths; every process of a mesh over several hosts gets it whole."""
        parameter, place = leaves[self.place.path], self.place
        where = parameter.sharding
        if isinstance(where, NamedSharding):
            where = NamedSharding(where.mesh, PartitionSpec())
        index = [] if place.layers is None else [self.layer]
        index += [self.expert] if place.experts else []
        return _fetcher(place.axes, place.shape, self.dtype, where)(parameter, tuple(map(np.int32, index)))


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder that comes into being with all its files or not at all: they are written to the one this yields.

    Raises:
        ConfigError: when there is something at `folder` already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists; name a folder that is new or empty")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.replace(folder)
    except BaseException:
        shutil.rmtree(draft)
        raise


def save_weights(
    folder: Path,
    family: Family,
    model: Model,
    params: Params,
    *,
    dtype: Callable[[str], str],
    like: SafetensorsDirectory | None = None,
    shard_bytes: int = SHARD,
    writer: int = 0,
    writers: int = 1,
) -> None:
    """Writes parameters as safetensors; no more than one tensor is on the host at a time.

    Several processes share the work when they call it alike but for `writer`, with the same folder: each writes its
    files, the first one the index too. It is whole when all have returned.

    Args:
        folder: where to.
        family: how tensors are named.
        model: whose parameters they are.
        params: the parameters.
        dtype: name of a tensor -> its dtype in the file.
        like: a checkpoint that is divided into files as this one is to be.
        shard_bytes: without one, how large a file becomes at most.
        writer: which of the processes this is.
        writers: how many they are.
    """
    tensors = stored(family, model, dtype)
    if like is not None and {tensor.name for tensor in tensors} <= like.shards.keys():
        shards, described = like.shards, like.index.get("metadata", {})
    else:
        share = -(-sum(tensor.size for tensor in tensors) // writers)
        shards, described = _dealt(tensors, min(shard_bytes, share)), {}
    leaves = flat(params)
    files: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        files.setdefault(shards[tensor.name], []).append(tensor)
    for number, (file, inside) in enumerate(files.items()):
        if number % writers == writer:
            _write(folder / file, inside, leaves)
        elif jax.process_count() > 1:
            for tensor in inside:  # whoever writes it needs all processes to fetch it
                jax.block_until_ready(tensor.of(leaves))
    if writer == 0 and list(files) != [WHOLE]:
        described = {**described, "total_size": sum(tensor.size for tensor in tensors)}
        index = {"metadata": described, "weight_map": {tensor.name: shards[tensor.name] for tensor in tensors}}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def copy_beside(source: Path, folder: Path) -> list[str]:
    """Copies tokenizer, chat template and the like of a Hugging Face directory; returns their names."""
    found = sorted({path for pattern in BESIDE for path in source.glob(pattern)})
    for path in found:
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copy2(path, folder / path.name)
    return [path.name for path in found]


def save_config(folder: Path, config: Mapping[str, Any], text: str | None, dtype: str) -> None:
    """Writes `config.json`: the very text it was read from, unless that names another dtype.

    Args:
        folder: where to.
        config: what it says.
        text: the file it was read from, if it was.
        dtype: of most weights.
    """
    key = "dtype" if "dtype" in config else "torch_dtype"
    if text is None or config.get(key, dtype) != dtype:
        text = json.dumps({**config, key: dtype}, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, "utf-8")


def stored(family: Family, model: Model, dtype: Callable[[str], str]) -> list[Tensor]:
    """All tensors of a checkpoint: embeddings, layer by layer, what comes after them.

    Args:
        family: how tensors are named.
        model: whose parameters they are.
        dtype: name of a tensor -> its dtype.
    """
    layout: Sequence[Place] = places(family, model)
    first, last, layers = list[Tensor](), list[Tensor](), dict[int, list[Tensor]]()
    for place in layout:
        for number, names in enumerate(place.names):
            if place.layers is not None:
                part = layers.setdefault(place.layers[number], [])
            else:
                part = first if place.path == ("embed",) else last
            part += [Tensor(name, place, number, expert, dtype(name)) for expert, name in enumerate(names)]
    return [*first, *(tensor for number in sorted(layers) for tensor in layers[number]), *last]


def _dealt(tensors: Sequence[Tensor], limit: int) -> dict[str, str]:
    """The file of each tensor: a new one is begun where the next tensor would not fit."""
    numbers, number, filled = {}, 0, 0
    for tensor in tensors:
        if filled and filled + tensor.size > limit:
            number, filled = number + 1, 0
        numbers[tensor.name] = number
        filled += tensor.size
    if number == 0:
        return dict.fromkeys(numbers, WHOLE)
    return {name: f"model-{n + 1:05d}-of-{number + 1:05d}.safetensors" for name, n in numbers.items()}


def _write(path: Path, tensors: Sequence[Tensor], leaves: Mapping[tuple[str, ...], jax.Array]) -> None:
    """A safetensors file, byte for byte as the package `safetensors` would write it, but tensor by tensor.

    Format: https://github.com/huggingface/safetensors#format. Wider dtypes come first, then names decide.
    """
    ordered = sorted(tensors, key=lambda tensor: (FLOATS.index(tensor.dtype), tensor.name))
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    offset = 0
    for tensor in ordered:
        span = [offset, offset := offset + tensor.size]
        head[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.place.shape), "data_offsets": span}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            file.write(np.asarray(tensor.of(leaves)).reshape(-1).view(np.uint8).data)


@cache
def _fetcher(axes: Axes, shape: tuple[int, ...], dtype: str, sharding: Sharding) -> Callable[..., jax.Array]:
    """Takes the tensor of a layer and expert out of a parameter."""
    return jax.jit(lambda x, index: restored(x[index], axes, shape).astype(dtype), out_shardings=sharding)
