"""A pickle that says where tensors lie, written without PyTorch.

`/update_weights_from_tensor` takes what `torch.multiprocessing` pickles: for tensors on GPUs handles of CUDA's, for
those in shared memory the name of the file (its sharing strategy "file_system"). The calls that rebuild them are on the
list of what SGLang's unpickler allows. The numbers themselves do not go through HTTP: SmolLM2's 0.5 GB took 8 to 13
seconds as base64 within JSON, and 0.17 s in this way.
"""

import pickle
import struct
from typing import Any, NamedTuple

import numpy as np

from rl.inference.sglang.publish.shared import SharedTensors

REBUILD = "torch.multiprocessing.reductions"


class _Name(NamedTuple):
    """Something that the reader imports."""

    module: str
    name: str


class _Call:
    """What the reader calls, and with what; in its place stands what comes out. Written twice, it is called once."""

    def __init__(self, function: _Name, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments


def handles(shared: SharedTensors) -> bytes:
    """The pickle of `[(name, tensor), …]` whose reader maps the file."""
    file = _Call(
        _Name(REBUILD, "rebuild_storage_filename"),
        _Name("torch", "UntypedStorage"),
        b"",  # no manager of shared memory of ours: the reader starts its own
        f"/{shared.path.name}".encode(),
        shared.size,
    )
    typed = {
        dtype: _Call(_Name(REBUILD, "rebuild_typed_storage"), file, _Name("torch", dtype))
        for dtype in sorted({tensor.dtype for tensor in shared.tensors})
    }
    found = []
    for name, dtype, shape, offset in shared.tensors:
        strides, count = list[int](), 1
        for length in reversed(shape):
            strides.insert(0, count)
            count *= length
        where = (offset // np.dtype(dtype).itemsize, shape, tuple(strides), False)
        found.append((name, _Call(_Name(REBUILD, "rebuild_tensor"), _Name("torch", "Tensor"), typed[dtype], where)))
    return pickle.PROTO + b"\x03" + _written(found, {}) + pickle.STOP


def _written(value: Any, known: dict[int, int]) -> bytes:
    """The opcodes that leave a value on the reader's stack.

    Args:
        value: of the kinds that are needed here.
        known: id of a call -> the number under which the reader keeps what came out.
    """
    match value:
        case _Name(module, name):
            return pickle.GLOBAL + f"{module}\n{name}\n".encode()
        case _Call():
            if id(value) in known:
                return pickle.LONG_BINGET + struct.pack("<I", known[id(value)])
            text = _written(value.function, known) + _written(value.arguments, known) + pickle.REDUCE
            known[id(value)] = len(known)
            return text + pickle.LONG_BINPUT + struct.pack("<I", known[id(value)])
        case bool():
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            long = pickle.encode_long(value)
            return pickle.LONG1 + bytes([len(long)]) + long
        case str():
            return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return pickle.BINBYTES + struct.pack("<I", len(value)) + value
        case tuple():
            return pickle.MARK + b"".join(_written(item, known) for item in value) + pickle.TUPLE
        case list():
            inside = b"".join(_written(item, known) for item in value)
            return pickle.EMPTY_LIST + pickle.MARK + inside + pickle.APPENDS
    raise TypeError(f"{type(value).__name__} is not written here")
