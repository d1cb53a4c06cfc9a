"""A GGUF file gives the tensors that a Hugging Face directory of the same model has."""

from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from envs.errors import ConfigError, UpswingError
from rl.weights.gguf_file import GGUFFile
from rl.weights.source import shape_of

Tensors = dict[str, np.ndarray]
Kind = gguf.GGMLQuantizationType

LLAMA = {
    "block_count": 2,
    "embedding_length": 32,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "context_length": 64,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
    "rope.dimension_count": 8,
}

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in the order of llama.cpp: the first of one half, the first of the other, the second …"""
    rows = tensor.shape[0] // heads
    order = [
        head * rows + half * rows // 2 + row for head in range(heads) for row in range(rows // 2) for half in (0, 1)
    ]
    return tensor[order]


def write(path: Path, tensors: Tensors, *, architecture: str = "llama", kind: Kind = Kind.F32, **changes: Any) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**LLAMA, **changes}.items():
        name = f"{architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_float32(name, value)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in tensors.items():
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        stored = (
            f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
            if rest and layer.isdigit()
            else NAMES.get(name, name)
        )
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            tensor = interleaved(tensor, 4 if "q_proj" in name else 2)
        if tensor.ndim == 1 or kind == Kind.F32:
            writer.add_tensor(stored, tensor)
        else:
            writer.add_tensor(stored, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_tensors_have_the_names_and_rows_of_hugging_face(tensors: Tensors, tmp_path: Path, architecture: str) -> None:
    """Only the architecture "llama" has its rows interleaved."""
    source = GGUFFile(write(tmp_path / "model.gguf", tensors, architecture=architecture))
    assert {name: info.shape for name, info in source.tensors.items()} == {n: t.shape for n, t in tensors.items()}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(source.read(name), tensor)


def test_the_metadata_become_a_config(tensors: Tensors, tmp_path: Path) -> None:
    source = GGUFFile(write(tmp_path / "model.gguf", tensors))
    assert source.config == {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": 72,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@pytest.mark.parametrize(
    ("kind", "dtype", "error"),
    [
        (Kind.F16, np.dtype("float16"), 2e-3),
        (Kind.BF16, np.dtype(ml_dtypes.bfloat16), 2e-2),
        (Kind.Q8_0, np.dtype("float32"), 2e-2),
        (Kind.Q4_1, np.dtype("float32"), 0.3),
    ],
)
def test_narrow_and_quantised_tensors(
    tensors: Tensors, tmp_path: Path, kind: Kind, dtype: np.dtype, error: float
) -> None:
    tensors = {n: np.repeat(t, 2, axis=1) if "down_proj" in n else t for n, t in tensors.items()}  # rows of 96 = 3 * 32
    source = GGUFFile(write(tmp_path / "model.gguf", tensors, kind=kind))
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight"):
        found = source.read(name)
        assert found.dtype == dtype == np.dtype(source.tensors[name].dtype)
        assert 0 < np.abs(found.astype(np.float32) - tensors[name]).max() < error


def test_a_block_of_q8_0_by_hand(tmp_path: Path) -> None:
    """A scale in half precision, then 32 whole numbers."""
    values = np.arange(-16, 16, dtype=np.int8)
    block = np.concatenate([np.float16([0.5]).view(np.uint8), values.view(np.uint8)])
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for key, value in LLAMA.items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"llama.{key}", value)
    writer.add_tensor("token_embd.weight", np.tile(block, (72, 1)), raw_dtype=Kind.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = GGUFFile(tmp_path / "model.gguf").read("model.embed_tokens.weight")
    assert found.shape == (72, 32)
    np.testing.assert_array_equal(found[5], np.arange(-16, 16) / 2)


def test_experts_lie_in_one_tensor(tensors: Tensors, tmp_path: Path) -> None:
    """Qwen3-MoE: `[experts, outputs, inputs]`, each read by itself."""
    experts = np.arange(4 * 32 * 32, dtype=np.float32).reshape(4, 32, 32)
    extra = {f"blk.{n}.ffn_{m}_exps.weight": experts + n for n in range(2) for m in ("gate", "up", "down")}
    moe = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
    source = GGUFFile(write(tmp_path / "model.gguf", {**tensors, **extra}, architecture="qwen3moe", **moe))
    assert source.config["num_experts"] == 4 and source.config["moe_intermediate_size"] == 32
    np.testing.assert_array_equal(source.read("model.layers.1.mlp.experts.2.up_proj.weight"), experts[2] + 1)


def test_the_stretch_of_llama_3_is_recognised(tensors: Tensors, tmp_path: Path) -> None:
    """llama.cpp keeps a divisor per pair: 1 for fast pairs, the factor for slow ones, in between what Llama 3 says."""
    pairs = 500000.0 ** (-np.arange(0, 8, 2) / 8)
    turns = 8192 * pairs / (2 * np.pi)
    keep = np.clip((turns - 1) / 3, 0, 1)
    divisors = (1 / ((1 - keep) / 32 + keep)).astype(np.float32)
    np.testing.assert_allclose(divisors, [1, 1, 3.292262, 32], rtol=1e-3)
    path = write(tmp_path / "model.gguf", {**tensors, "rope_freqs.weight": divisors}, **{"rope.freq_base": 500000.0})
    source = GGUFFile(path)
    assert "rope_freqs.weight" not in source.tensors
    assert source.config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    odd = write(tmp_path / "odd.gguf", {**tensors, "rope_freqs.weight": divisors * 2}, **{"rope.freq_base": 500000.0})
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight is not what Llama 3 has for a factor of 64"):
        GGUFFile(odd)


def test_linear_scaling(tensors: Tensors, tmp_path: Path) -> None:
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    shape = shape_of(GGUFFile(write(tmp_path / "model.gguf", tensors, **scaling)))
    assert (shape.ropes[0].stretch, shape.ropes[0].factor) == ("linear", 4.0)


def test_files_that_cannot_be_read(tensors: Tensors, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", tensors, architecture="falcon")
    with pytest.raises(
        ConfigError, match=r"unknown GGUF architecture of .*'falcon'.*known: llama, qwen2, qwen3, qwen3moe"
    ):
        GGUFFile(path)
    path = write(tmp_path / "model.gguf", tensors)
    whole = path.read_bytes()
    path.write_bytes(whole[:-500])
    with pytest.raises(UpswingError, match=r"is cut short: blk\.1\..* ends at byte \d+, the file at \d+"):
        GGUFFile(path)
    path.write_bytes(whole[:300])
    with pytest.raises(UpswingError, match="is damaged or cut short"):
        GGUFFile(path)
    path.write_bytes(b"GGML" + whole[4:])
    with pytest.raises(UpswingError, match="is no GGUF file"):
        GGUFFile(path)
    layers = write(tmp_path / "layers.gguf", tensors, **{"attention.head_count": [4, 2]})
    with pytest.raises(ConfigError, match=r"says attention\.head_count for each layer, \[4, 2\]"):
        GGUFFile(layers)
