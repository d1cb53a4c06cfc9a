"""Loading needs no more memory than the model and one layer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file


def checkpoint(folder: Path, *, width: int, ffn: int, layers: int, vocab: int) -> Path:
    """Brain floats, as most checkpoints have them."""
    folder.mkdir()
    shapes = {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    shapes |= {f"mlp.{name}_proj": (ffn, width) for name in ("gate", "up")} | {"mlp.down_proj": (width, ffn)}
    shapes |= {f"self_attn.{name}_proj": (width, width) for name in "qo"}
    shapes |= {f"self_attn.{name}_proj": (width // 4, width) for name in "kv"}
    names = {f"model.layers.{n}.{name}.weight": shape for n in range(layers) for name, shape in shapes.items()}
    names |= {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    save_file({name: np.ones(shape, ml_dtypes.bfloat16) for name, shape in names.items()}, folder / "model.safetensors")
    config = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 64}
    config |= {"vocab_size": vocab, "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers}
    config |= {"num_attention_heads": 8, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux's /proc")
def test_loading_needs_the_model_and_one_layer(tmp_path: Path) -> None:
    small = checkpoint(tmp_path / "small", width=64, ffn=128, layers=2, vocab=64)
    big = checkpoint(tmp_path / "big", width=1024, ffn=4096, layers=4, vocab=4096)
    # Without this, malloc keeps blocks for later instead of giving them back: they would count as needed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("measure_load.py")
    done = subprocess.run(
        [sys.executable, str(script), str(small), str(big), "float32"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    above, held = map(int, done.stdout.split())
    layer = 4 * (2 * 1024 * 1024 + 2 * 256 * 1024 + 3 * 4096 * 1024 + 2 * 1024)
    assert held == 4 * layer + 4 * (4096 * 1024 + 1024) == 260_083_712
    # It was 39 MB, 20 of them the compiler's; what is read at once is one tensor. A copy of the file is 130 MB.
    assert above < layer == 60_825_600
