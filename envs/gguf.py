"""The head of a GGUF file: what it says of its model, and where its tensors lie.

The `gguf` package reads a file too, but takes seconds to go through a vocabulary number by number; this takes a moment.
Format: version 2 or 3 of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, little-endian.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from envs.errors import UpswingError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class GGUFTensor(NamedTuple):
    """Where a tensor lies.

    Attributes:
        shape: as numpy has it: the slowest axis first (the file says it the other way round).
        kind: number of its `gguf.GGMLQuantizationType`.
        offset: of its first byte, from the beginning of the file.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class GGUFHead:
    """What stands before the tensors' data.

    Attributes:
        path: of the file.
        metadata: keys like "general.architecture" or "tokenizer.ggml.tokens", with Python values.
        tensors: by name.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf_head(path: Path) -> GGUFHead:
    """Reads metadata and the list of tensors; the tensors' data stay where they are.

    Raises:
        UpswingError: when the file is no GGUF of a known version, or ends too early.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UpswingError(f"{path} is no GGUF file: it does not begin with 'GGUF'")
        try:
            return _read_head(path, file)
        except (struct.error, UnicodeDecodeError, OverflowError, MemoryError, KeyError) as error:
            raise UpswingError(f"{path} is damaged or cut short: {type(error).__name__}: {error}") from error


def _read_head(path: Path, file: BinaryIO) -> GGUFHead:
    version, count, pairs = _unpack(file, "IQQ")
    if version not in (2, 3):
        raise UpswingError(f"{path} is GGUF version {version}; versions 2 and 3 in little-endian order are read here")
    metadata = {}
    for _ in range(pairs):
        key = _string(file)
        metadata[key] = _value(file, _unpack(file, "I")[0])
    found = []
    for _ in range(count):
        name, (axes,) = _string(file), _unpack(file, "I")
        shape, (kind, offset) = _unpack(file, f"{axes}Q"), _unpack(file, "IQ")
        found.append((name, shape[::-1], kind, offset))
    alignment = metadata.get("general.alignment", 32)
    start = -(-file.tell() // alignment) * alignment
    tensors = {name: GGUFTensor(shape, kind, start + offset) for name, shape, kind, offset in found}
    return GGUFHead(path, metadata, tensors)


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _unpack(file, _SCALARS[kind])[0]
    of, length = _unpack(file, "IQ")
    if of in (_STRING, _ARRAY):
        return [_value(file, of) for _ in range(length)]
    return list(_unpack(file, f"{length}{_SCALARS[of]}"))


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    text = file.read(length)
    if len(text) < length:
        raise struct.error(f"a text of {length} bytes ends after {len(text)}")
    return text.decode("utf-8")


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    form = "<" + form
    return struct.unpack(form, file.read(struct.calcsize(form)))
