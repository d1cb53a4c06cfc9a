"""A Hugging Face directory: `config.json`, and `model.safetensors` whole or in shards with an index."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.errors import ConfigError, UpswingError
from rl.weights.source import TensorInfo, package, read_tensor

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "U8": "uint8"}
"""Safetensors' names of the dtypes that weights have here, packed ones among them."""


class _Span(NamedTuple):
    """Where the bytes of a tensor lie."""

    file: Path
    offset: int


class SafetensorsDirectory:
    """Reads a directory, tensor by tensor.

    The package `safetensors` checks the files; the numbers are read past it, because it maps files into memory, and
    whatever was read of a map stays in memory as long as the file is open.

    Attributes:
        index: what the index of the shards says; empty for a single file.

    Raises:
        ConfigError: when there is no `config.json`, or no safetensors.
        UpswingError: when a file is missing, damaged, or holds not what the index says.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._config = read_json(path / "config.json")
        self._spans: dict[str, _Span] = {}
        self._tensors: dict[str, TensorInfo] = {}
        files, self.index = _files(path)
        placed = self.index["weight_map"] if self.index else {}
        for file in files:
            for name, (info, span) in contents(file).items():
                self._tensors[name], self._spans[name] = info, span
        shards = self.shards
        lost = [f"{name} in {file}" for name, file in placed.items() if shards.get(name) != file]
        if lost:
            raise UpswingError(f"{path / INDEX} places tensors where they are not: {', '.join(lost)}")

    @property
    def path(self) -> Path:
        return self._path

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    @property
    def shards(self) -> Mapping[str, str]:
        """The name of the file that each tensor lies in."""
        return {name: span.file.name for name, span in self._spans.items()}

    def read(self, name: str) -> np.ndarray:
        (shape, dtype), (file, offset) = self._tensors[name], self._spans[name]
        return read_tensor(file, offset, shape, np.dtype(dtype))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ConfigError: when the file is missing or holds something else.
    """
    if not path.is_file():
        raise ConfigError(f"{path.parent} has no {path.name}; expected the folder of a Hugging Face checkpoint")
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}; expected an object")
    return found


def _files(path: Path) -> tuple[list[Path], dict[str, Any]]:
    """The files that hold the tensors, and the index if there is one."""
    if (path / WHOLE).is_file():
        return [path / WHOLE], {}
    if not (path / INDEX).is_file():
        other = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".gguf"))
        hint = f"; {', '.join(other)} would have to be converted or named itself" if other else ""
        raise ConfigError(f"{path} has neither {WHOLE} nor {INDEX}{hint}")
    index = read_json(path / INDEX)
    placed = index.get("weight_map")
    if not isinstance(placed, dict):
        raise ConfigError(f"{path / INDEX} has no weight_map")
    names = sorted(set(placed.values()))
    if missing := [name for name in names if not (path / name).is_file()]:
        raise UpswingError(
            f"{path}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing)}; download them again"
        )
    return [path / name for name in names], index


def contents(path: Path) -> dict[str, tuple[TensorInfo, _Span]]:
    """The tensors of a file. Format: https://github.com/huggingface/safetensors#format."""
    safetensors = package("safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy"):  # checks the head, and that it covers the file
            pass
    except safetensors.SafetensorError as error:
        raise UpswingError(f"{path} is damaged or cut short: {error}; download it again") from error
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(size))
    return {
        name: (
            TensorInfo(tuple(entry["shape"]), DTYPES.get(entry["dtype"], entry["dtype"])),
            _Span(path, 8 + size + entry["data_offsets"][0]),
        )
        for name, entry in head.items()
        if name != "__metadata__"
    }
