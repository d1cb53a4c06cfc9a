"""What gpt-oss publishes in MXFP4 is read as the numbers it stands for."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from envs.errors import ConfigError
from envs.render.byte_tokenizer import byte_tokenizer
from rl.cli.export import export
from rl.models.gpt_oss import FAMILY, GptOssConfig
from rl.parallel.mesh import make_mesh, parameter_shardings
from rl.weights.load import load
from rl.weights.mxfp4 import unpacked
from rl.weights.save import save_weights
from rl.weights.source import open_source, shape_of
from rl.weights.tokenizer import save_tokenizer

CONFIG = GptOssConfig(
    **{"vocab_size": 272, "layers": 1, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 32, "context": 64},
    **{"experts": 2, "experts_per_token": 1, "expert_ffn": 32},
)
EXPERTS = "model.layers.0.mlp.experts"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model, its experts' matrices packed; `whole.npz` has what they stand for."""
    model = FAMILY.build(CONFIG)
    folder = tmp_path / "packed"
    folder.mkdir()
    save_tokenizer(folder, byte_tokenizer())
    save_weights(folder, FAMILY, model, model.init(jax.random.key(0)), dtype=lambda name: "float32")
    config = {**FAMILY.write_config(CONFIG), "quantization_config": {"quant_method": "mxfp4"}}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    rng, numbers = np.random.default_rng(0), {}
    for name in ("gate_up_proj", "down_proj"):
        experts, inputs, outputs = tensors.pop(f"{EXPERTS}.{name}").shape
        blocks = rng.integers(0, 256, (experts, outputs, inputs // 32, 16), np.uint8)
        scales = rng.integers(110, 130, (experts, outputs, inputs // 32), np.uint8)
        tensors |= {f"{EXPERTS}.{name}_blocks": blocks, f"{EXPERTS}.{name}_scales": scales}
        numbers[name] = unpacked(blocks, scales).swapaxes(1, 2)
    save_file(tensors, folder / "model.safetensors")
    np.savez(tmp_path / "whole.npz", **numbers)
    return folder


def test_all_numbers_there_are() -> None:
    """All sixteen, each twice: the lower half of a byte comes first."""
    block = np.array([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2], np.uint8)
    once = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert unpacked(block, np.array([127], np.uint8)).tolist() == once * 2
    assert unpacked(block, np.array([129], np.uint8)).tolist() == [4 * number for number in once] * 2
    assert unpacked(block, np.array([120], np.uint8)).tolist() == [number / 128 for number in once] * 2


def test_a_model_is_loaded_as_released(folder: Path) -> None:
    source = open_source(folder)
    model = FAMILY.build(shape_of(source))
    shardings = parameter_shardings(make_mesh({"data": 1}), model.axes, {})
    experts = load(source, FAMILY, model, shardings)["layers"]["ffn"]["experts"]
    numbers = np.load(folder.parent / "whole.npz")
    np.testing.assert_array_equal(experts["gate_up"][0], numbers["gate_up_proj"])
    np.testing.assert_array_equal(experts["down"][0], numbers["down_proj"])


def test_it_is_written_as_others_read_it(folder: Path, tmp_path: Path) -> None:
    export(str(folder), tmp_path / "plain", None)
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    written = load_file(tmp_path / "plain" / "model.safetensors")
    numbers = np.load(tmp_path / "whole.npz")
    assert written[f"{EXPERTS}.down_proj"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(written[f"{EXPERTS}.down_proj"].astype(np.float32), numbers["down_proj"])
    assert not any("blocks" in name for name in written)


def test_half_of_a_packed_tensor_names_itself(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{EXPERTS}.down_proj_scales"]
    save_file(tensors, folder / "model.safetensors")
    source = open_source(folder)
    model = FAMILY.build(shape_of(source))
    shardings = parameter_shardings(make_mesh({"data": 1}), model.axes, {})
    with pytest.raises(
        ConfigError, match=r"down_proj is missing.*\n.*down_proj_blocks of shape .* is no part of the model"
    ):
        load(source, FAMILY, model, shardings)
