"""What a directory holds becomes parameters, exactly and where they belong; what does not fit names itself."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from envs.errors import ConfigError, UpswingError
from rl.models.base import Params
from rl.parallel.mesh import make_mesh, parameter_shardings
from rl.weights.load import load
from rl.weights.source import family_of, find_source, open_source, shape_of

Tensors = dict[str, np.ndarray]
Write = Callable[..., Path]


def loaded(folder: Path, dtype: str = "float32", mesh: dict[str, int] | None = None, **rules: str) -> Params:
    source = open_source(folder)
    family = family_of(source)
    model = family.build(shape_of(source))
    shardings = parameter_shardings(make_mesh(mesh or {"data": 1}), model.axes, rules)
    return load(source, family, model, shardings, dtype)


def expected(tensors: Tensors) -> Params:
    """Linear layers keep `[outputs, inputs]`; parameters are `[inputs…, outputs…]` with heads apart."""

    def stack(name: str, *shape: int) -> np.ndarray:
        layers = [tensors[f"model.layers.{n}.{name}.weight"] for n in range(2)]
        return np.stack([layer.T.reshape(shape) for layer in layers])

    return {
        "embed": tensors["model.embed_tokens.weight"],
        "norm": {"scale": tensors["model.norm.weight"]},
        "layers": {
            "attention_norm": {"scale": stack("input_layernorm", 32)},
            "ffn_norm": {"scale": stack("post_attention_layernorm", 32)},
            "attention": {
                "q": stack("self_attn.q_proj", 32, 4, 8),
                "k": stack("self_attn.k_proj", 32, 2, 8),
                "v": stack("self_attn.v_proj", 32, 2, 8),
                "o": stack("self_attn.o_proj", 4, 8, 32),
            },
            "ffn": {
                "gate": stack("mlp.gate_proj", 32, 48),
                "up": stack("mlp.up_proj", 32, 48),
                "down": stack("mlp.down_proj", 48, 32),
            },
        },
    }


def assert_equal(found: Params, wanted: Params) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_directory_becomes_parameters(write: Write, tensors: Tensors, shards: int) -> None:
    params = loaded(write(tensors, shards=shards))
    assert_equal(params, expected(tensors))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_brain_floats_stay_or_widen_as_asked(write: Write, tensors: Tensors) -> None:
    narrow = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    folder = write(narrow)
    kept = loaded(folder, "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype(ml_dtypes.bfloat16)}
    assert_equal(kept, expected(narrow))
    assert_equal(loaded(folder), expected({name: tensor.astype(np.float32) for name, tensor in narrow.items()}))


def test_each_device_holds_its_part(write: Write, tensors: Tensors) -> None:
    params = loaded(write(tensors), mesh={"fsdp": 2, "tensor": 2}, embed="fsdp", heads="tensor", ffn="tensor")
    assert_equal(params, expected(tensors))
    q, down = params["layers"]["attention"]["q"], params["layers"]["ffn"]["down"]
    assert {shard.data.shape for shard in q.addressable_shards} == {(2, 16, 2, 8)}
    assert {shard.data.shape for shard in down.addressable_shards} == {(2, 24, 16)}


def test_a_head_of_its_own(write: Write, tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    params = loaded(write(tensors, tie_word_embeddings=False))
    np.testing.assert_array_equal(params["head"], tensors["lm_head.weight"])


def test_harmless_extras_are_left_aside(write: Write, tensors: Tensors) -> None:
    extras = {
        "lm_head.weight": tensors["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        "model.layers.2.eh_proj.weight": np.ones((32, 64), np.float32),
    }
    folder = write({**tensors, **extras}, num_nextn_predict_layers=1)
    assert_equal(loaded(folder), expected(tensors))


def test_everything_that_does_not_fit_is_named(write: Write, tensors: Tensors) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((32, 32), np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((32, 48), np.int8)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    with pytest.raises(ConfigError) as error:
        loaded(folder := write(tensors))
    assert str(error.value) == (
        f"{folder} does not hold the model that its config describes; 6 tensors do not fit:\n"
        "  lm_head.weight of shape (72, 32) differs from model.embed_tokens.weight, but tie_word_embeddings says that "
        "they are one\n"
        "  model.layers.0.self_attn.k_proj.weight has shape (32, 32); expected (16, 32)\n"
        "  model.layers.0.self_attn.q_proj.bias of shape (32,) is no part of the model\n"
        "  model.layers.1.mlp.down_proj.weight has dtype I8; expected one of float32, bfloat16, float16\n"
        "  model.layers.1.mlp.up_proj.weight is missing; expected shape (48, 32)\n"
        "  model.norm.weight is missing; expected shape (32,)"
    )


def test_a_file_that_ends_too_early(write: Write, tensors: Tensors) -> None:
    folder = write(tensors)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UpswingError, match=rf"{file} is damaged or cut short: .*; download it again"):
        loaded(folder)


def test_a_shard_that_is_missing(write: Write, tensors: Tensors) -> None:
    folder = write(tensors, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UpswingError, match=r"1 of 3 shards are missing: model-00002-of-00003\.safetensors"):
        loaded(folder)


def test_an_index_that_is_wrong(write: Write, tensors: Tensors) -> None:
    folder = write(tensors, shards=2)
    index = folder / "model.safetensors.index.json"
    text = json.loads(index.read_text())
    text["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(text))
    wrong = "model.norm.weight in model-00001-of-00002.safetensors"
    with pytest.raises(UpswingError, match=f"places tensors where they are not: {re.escape(wrong)}"):
        loaded(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "unknown model_type of .*'lama'; did you mean 'llama'"),
        ({"model_type": None}, "unknown model_type of .*'None'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; supported here: 'silu'"),
        ({"hidden_size": 34}, "width 34 is not a multiple of heads 4"),
    ],
)
def test_a_config_that_cannot_be_used(write: Write, tensors: Tensors, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(write(tensors, **change))


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file or folder.*hf download OWNER/NAME"):
        find_source(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        open_source(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is no JSON"):
        open_source(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"neither model\.safetensors nor .*; pytorch_model\.bin would have to be"):
        open_source(tmp_path)
    with pytest.raises(ConfigError, match="is no checkpoint"):
        open_source(tmp_path / "pytorch_model.bin")


def test_files_of_packages_are_found_without_importing_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "weights.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_source("package:some_weights/weights.gguf") == folder / "weights.gguf"
    with pytest.raises(ConfigError, match=r"has no such file; its checkpoints: weights\.gguf"):
        find_source("package:some_weights/other.gguf")
    with pytest.raises(ConfigError, match="is not installed; install it with: pip install --no-deps more-weights"):
        find_source("package:more_weights/weights.gguf")
