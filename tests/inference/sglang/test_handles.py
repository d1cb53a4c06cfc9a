"""Tensors lie in shared memory where the pickle says; whoever reads it needs what PyTorch has, and no more."""

import io
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from envs.errors import InfrastructureError
from rl.inference.sglang.publish import shared
from rl.inference.sglang.publish.handles import handles
from rl.inference.sglang.publish.shared import HEAD, PREFIX, SharedTensors, check_room, left_behind, of_this_host, share
from rl.inference.sglang.publish.way import Exporter
from rl.models.base import DecoderConfig
from rl.models.llama import FAMILY

MODEL = FAMILY.build(DecoderConfig(vocab_size=10, layers=2, width=8, heads=2, kv_heads=1, ffn=12, context=16))
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared, "MEMORY", tmp_path)
    return tmp_path


@pytest.fixture(params=["float32", "bfloat16"])
def lying(request: pytest.FixtureRequest, memory: Path) -> Iterator[SharedTensors]:
    yield share(Exporter(FAMILY, MODEL, request.param), PARAMS)


class Reader(pickle.Unpickler):
    """Rebuilds the tensors as numpy's, from PyTorch's own calls for it, which are all that it knows."""

    def __init__(self, text: bytes, folder: Path) -> None:
        super().__init__(io.BytesIO(text))
        self.maps: list[np.ndarray] = []
        self._folder = folder

    def _map(self, kind: str, manager: bytes, name: bytes, size: int) -> np.ndarray:
        assert (kind, manager) == ("UntypedStorage", b"")
        self.maps.append(np.memmap(self._folder / name.decode().removeprefix("/"), np.uint8, "r", HEAD, (size,)))
        return self.maps[-1]

    def _tensor(self, kind: str, storage: np.ndarray, where: tuple[Any, ...]) -> np.ndarray:
        offset, shape, strides, gradient = where
        assert (kind, gradient) == ("Tensor", False)
        strides = tuple(stride * storage.itemsize for stride in strides)
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides)

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any] | str] = {
            ("torch", "UntypedStorage"): "UntypedStorage",
            ("torch", "Tensor"): "Tensor",
            ("torch", "float32"): "float32",
            ("torch", "bfloat16"): "bfloat16",
            ("torch.multiprocessing.reductions", "rebuild_storage_filename"): self._map,
            ("torch.multiprocessing.reductions", "rebuild_typed_storage"): lambda file, kind: file.view(kind),
            ("torch.multiprocessing.reductions", "rebuild_tensor"): self._tensor,
        }
        return known[module, name]


def test_a_reader_finds_every_tensor_as_the_checkpoint_would_have_it(lying: SharedTensors, memory: Path) -> None:
    reader = Reader(handles(lying), memory)
    found = dict(reader.load())
    assert len(reader.maps) == 1
    assert list(found) == [tensor.name for tensor in lying.tensors]
    assert found["model.layers.1.mlp.down_proj.weight"].shape == (8, 12)
    gate = np.asarray(PARAMS["layers"]["ffn"]["gate"][1]).T
    np.testing.assert_array_equal(
        found["model.layers.1.mlp.gate_proj.weight"], gate.astype(found["model.layers.1.mlp.gate_proj.weight"].dtype)
    )
    embed = np.asarray(PARAMS["embed"])
    np.testing.assert_array_equal(
        found["model.embed_tokens.weight"], embed.astype(found["model.embed_tokens.weight"].dtype)
    )


def test_pytorch_shall_not_remove_the_file(lying: SharedTensors) -> None:
    assert int.from_bytes(lying.path.read_bytes()[:4], "little") == 1 << 30
    assert all(tensor.offset % 64 == 0 for tensor in lying.tensors)


def test_what_a_killed_process_left_is_found_and_ours_is_not(tmp_path: Path) -> None:
    dead = next(number for number in range(4_000_000, 5_000_000) if not Path("/proc", str(number)).exists())
    for name in (f"{PREFIX}-{dead}-aaa", f"{PREFIX}-{os.getpid()}-bbb", "something"):
        (tmp_path / name).touch()
    assert left_behind(tmp_path) == [tmp_path / f"{PREFIX}-{dead}-aaa"]


def test_no_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"GB free, and the weights take 1000000000\.0 GB"):
        check_room(tmp_path, 10**18)
    with pytest.raises(InfrastructureError, match="publish=disk takes another folder"):
        check_room(tmp_path / "missing", 1)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("10.0.0.7", False),
        ("gpu-node-3", False),
    ],
)
def test_an_address_tells_whether_a_server_shares_our_memory(host: str, here: bool) -> None:
    assert of_this_host(host) is here
