"""A Hugging Face directory: `config.json`, and `model.safetensors` whole or in shards with an index."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.errors import ConfigError, UpswingError
from rl.weights.source import TensorInfo, package

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Safetensors' names of the dtypes that weights have here."""


class SafetensorsDirectory:
    """Reads a directory, tensor by tensor.

    A file is opened anew for every tensor: its pages are mapped into memory as they are read, and would stay there.

    Raises:
        ConfigError: when there is no `config.json`, or no safetensors.
        UpswingError: when a file is missing, damaged, or holds not what the index says.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._config = read_json(path / "config.json")
        self._files: dict[str, Path] = {}
        self._tensors: dict[str, TensorInfo] = {}
        files, placed = _files(path)
        for file in files:
            for name, info in _contents(file).items():
                self._files[name], self._tensors[name] = file, info
        lost = [f"{name} in {file}" for name, file in placed.items() if self._files.get(name) != path / file]
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
        return {name: file.name for name, file in self._files.items()}

    def read(self, name: str) -> np.ndarray:
        with _open(self._files[name]) as file:
            tensor: np.ndarray = file.get_tensor(name)
            return tensor


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


def _files(path: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that hold the tensors, and for shards the file that the index names for each tensor."""
    if (path / WHOLE).is_file():
        return [path / WHOLE], {}
    if not (path / INDEX).is_file():
        other = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".gguf"))
        hint = f"; {', '.join(other)} would have to be converted or named itself" if other else ""
        raise ConfigError(f"{path} has neither {WHOLE} nor {INDEX}{hint}")
    placed = read_json(path / INDEX).get("weight_map")
    if not isinstance(placed, dict):
        raise ConfigError(f"{path / INDEX} has no weight_map")
    names = sorted(set(placed.values()))
    if missing := [name for name in names if not (path / name).is_file()]:
        raise UpswingError(
            f"{path}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing)}; download them again"
        )
    return [path / name for name in names], placed


def _contents(path: Path) -> dict[str, TensorInfo]:
    with _open(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
        return {
            name: TensorInfo(tuple(part.get_shape()), DTYPES.get(part.get_dtype(), part.get_dtype()))
            for name, part in slices.items()
        }


def _open(path: Path) -> Any:
    safetensors = package("safetensors")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise UpswingError(f"{path} is damaged or cut short: {error}; download it again") from error
