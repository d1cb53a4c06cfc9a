"""Tensors in a file of this host's shared memory, which other processes map instead of being sent them."""

import ipaddress
import os
import re
import socket
import struct
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from envs.errors import InfrastructureError
from rl.inference.sglang.publish.way import Exporter
from rl.models.base import Params
from rl.models.lora import dense
from rl.weights.layout import flat

MEMORY = Path("/dev/shm")

PREFIX = "upswing-weights"
OURS = re.compile(rf"{PREFIX}-(\d+)-.*")

HEAD = 64
"""Bytes before the tensors. PyTorch keeps there how many processes map the file, as a 32-bit integer, and removes the
file when that falls to 0: `RefcountedMapAllocator` in `aten/src/ATen/MapAllocator.cpp`."""

HELD = 1 << 30
"""We remove the file ourselves, so that number shall not fall to 0."""

ALIGNED = 64


class Lying(NamedTuple):
    """A tensor in a file; `offset` is in bytes, from the end of the head."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class SharedTensors(NamedTuple):
    """A file of tensors; `size` is in bytes, without the head."""

    path: Path
    size: int
    tensors: tuple[Lying, ...]


def share(exporter: Exporter, params: Params) -> SharedTensors:
    """Writes parameters into shared memory.

    Raises:
        InfrastructureError: when there is no room for them, or no shared memory.
    """
    tensors, lying, end = exporter.tensors(), list[Lying](), 0
    for tensor in tensors:
        lying.append(Lying(tensor.name, tensor.dtype, tensor.place.shape, end))
        end += -(-tensor.size // ALIGNED) * ALIGNED
    check_room(MEMORY, end)
    path, leaves = MEMORY / fresh_name(), flat(dense(params))
    try:
        with path.open("xb") as file:
            file.write(struct.pack("<i", HELD).ljust(HEAD, b"\0"))
            for tensor, place in zip(tensors, lying, strict=True):
                file.seek(HEAD + place.offset)
                file.write(np.asarray(tensor.of(leaves)).reshape(-1).view(np.uint8).data)
            file.truncate(HEAD + end)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return SharedTensors(path, end, tuple(lying))


def check_room(folder: Path, size: int) -> None:
    """Sees whether a file system takes so many bytes more.

    Raises:
        InfrastructureError: when it does not, or is not there.
    """
    if not folder.is_dir():
        raise InfrastructureError(f"there is no {folder} to publish weights in; publish=disk takes another folder")
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if size > free:
        raise InfrastructureError(
            f"{folder} has {free / 1e9:.1f} GB free, and the weights take {size / 1e9:.1f} GB; two versions of them "
            "lie there for a moment"
        )


def of_this_host(host: str) -> bool:
    """Whether a name or an address stands for this host, as far as it tells by itself."""
    if host in ("localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def fresh_name() -> str:
    """A name in shared memory that nobody has, and that says whose it is."""
    return f"{PREFIX}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def left_behind(folder: Path = MEMORY) -> Sequence[Path]:
    """What processes have left there that were killed."""
    if not folder.is_dir():
        return []
    named = [(path, OURS.fullmatch(path.name)) for path in folder.iterdir()]
    return [path for path, name in named if name and not Path("/proc", name[1]).exists()]
