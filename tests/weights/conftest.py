"""A checkpoint as Hugging Face would have it, made by hand: two layers of width 32, four heads, two of keys."""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 72,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}

LAYER = {
    "input_layernorm": (32,),
    "post_attention_layernorm": (32,),
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (48, 32),
    "mlp.up_proj": (48, 32),
    "mlp.down_proj": (32, 48),
}

Tensors = dict[str, np.ndarray]


@pytest.fixture
def tensors() -> Tensors:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (72, 32), "model.norm.weight": (32,)}
    shapes |= {f"model.layers.{n}.{name}.weight": shape for n in range(2) for name, shape in LAYER.items()}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


class Write(Protocol):
    """Makes a directory with these tensors, dealt out to shards in turn, and a config that is changed a little."""

    def __call__(self, tensors: Tensors, shards: int = 1, **changes: Any) -> Path: ...


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(tensors: Tensors, shards: int = 1, **changes: Any) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
        if shards == 1:
            save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
            return tmp_path
        files = {name: f"model-{n % shards + 1:05d}-of-{shards:05d}.safetensors" for n, name in enumerate(tensors)}
        for file in set(files.values()):
            part = {name: tensors[name] for name in tensors if files[name] == file}
            save_file(part, tmp_path / file, metadata={"format": "pt"})
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        return tmp_path

    return write
