"""What is written is what was read, byte for byte; tied weights once; all of a directory or nothing."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from envs.errors import ConfigError
from rl.models.base import Model, Params
from rl.models.family import Family
from rl.models.llama import FAMILY
from rl.parallel.mesh import make_mesh, parameter_shardings
from rl.weights.load import load
from rl.weights.safetensors_dir import SafetensorsDirectory
from rl.weights.save import copy_beside, save_config, save_weights, whole
from rl.weights.source import family_of, shape_of

Tensors = dict[str, np.ndarray]
Write = Callable[..., Path]


def opened(folder: Path, mesh: dict[str, int] | None = None, **rules: str) -> tuple[Family, Model, Params]:
    source = SafetensorsDirectory(folder)
    family = family_of(source)
    model = family.build(shape_of(source))
    return (
        family,
        model,
        load(source, family, model, parameter_shardings(make_mesh(mesh or {"data": 1}), model.axes, rules)),
    )


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("model*")}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [np.dtype("float32"), np.dtype(ml_dtypes.bfloat16)])
def test_a_round_trip_gives_the_same_files(
    write: Write, tensors: Tensors, tmp_path: Path, shards: int, dtype: np.dtype
) -> None:
    """The files to compare with were written by the package safetensors."""
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float16)  # dtypes may be mixed
    folder = write(tensors, shards)
    source = SafetensorsDirectory(folder)
    out = tmp_path / "out"
    out.mkdir()
    save_weights(out, *opened(folder), dtype=lambda name: source.tensors[name].dtype, like=source)
    assert hashes(out) == hashes(folder)
    assert len(hashes(out)) == (1 if shards == 1 else 4)


def test_parameters_on_several_devices_are_written_alike(write: Write, tensors: Tensors, tmp_path: Path) -> None:
    folder, out = write(tensors), tmp_path / "out"
    out.mkdir()
    sharded = opened(folder, {"fsdp": 2, "tensor": 2}, embed="fsdp", heads="tensor", kv_heads="tensor", ffn="tensor")
    save_weights(out, *sharded, dtype=lambda name: "float32")
    assert hashes(out) == hashes(folder)


def test_files_are_filled_in_the_order_of_the_model(write: Write, tensors: Tensors, tmp_path: Path) -> None:
    folder, out = write(tensors), tmp_path / "out"
    out.mkdir()
    save_weights(out, *opened(folder), dtype=lambda name: "bfloat16", shard_bytes=16_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 35_648}  # 2 bytes for each of 17,824 numbers
    files = index["weight_map"]
    assert files["model.embed_tokens.weight"] == "model-00001-of-00003.safetensors"
    assert files["model.norm.weight"] == "model-00003-of-00003.safetensors"
    assert {files[name] for name in files if "layers.0." in name} == {
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
    }
    found = {}
    for file in sorted(set(files.values())):
        assert (out / file).stat().st_size < 16_000 + 2_000
        found |= load_file(out / file)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor.astype(ml_dtypes.bfloat16))


def test_tied_weights_are_written_once(write: Write, tensors: Tensors, tmp_path: Path) -> None:
    folder = write({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    out = tmp_path / "out"
    out.mkdir()
    save_weights(out, *opened(folder), dtype=lambda name: "float32", like=SafetensorsDirectory(folder))
    assert load_file(out / "model.safetensors").keys() == tensors.keys()


def test_fresh_weights_are_written_in_one_file(model: Model, params: Params, tmp_path: Path) -> None:
    save_weights(tmp_path, FAMILY, model, params, dtype=lambda name: "float32")
    save_config(tmp_path, FAMILY.write_config(model.config), None, "float32")
    _, again, same = opened(tmp_path)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_a_config_keeps_its_text_unless_the_dtype_changes(tmp_path: Path) -> None:
    text = '{"model_type":"llama",   "torch_dtype": "bfloat16"}'
    save_config(tmp_path, json.loads(text), text, "bfloat16")
    assert (tmp_path / "config.json").read_text() == text
    save_config(tmp_path, json.loads(text), text, "float32")
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "llama", "torch_dtype": "float32"}


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyError), whole(tmp_path / "out") as draft:
        (draft / "config.json").write_text("{}")
        raise KeyError("in the middle")
    assert list(tmp_path.iterdir()) == []
    with whole(tmp_path / "out") as draft:
        (draft / "config.json").write_text("{}")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "config.json"]
    with pytest.raises(ConfigError, match="out exists; name a folder that is new or empty"), whole(tmp_path / "out"):
        pass


def test_what_belongs_to_a_checkpoint_comes_along(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "additional_chat_templates").mkdir(parents=True)
    out.mkdir()
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
    for name in [*names, "model.safetensors", "config.json", "README.md", "additional_chat_templates/tools.jinja"]:
        (source / name).write_text(name)
    assert copy_beside(source, out) == sorted([*names, "additional_chat_templates"])
    assert (out / "additional_chat_templates" / "tools.jinja").read_text() == "additional_chat_templates/tools.jinja"
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "additional_chat_templates"])
