"""Adapters in PEFT's files: names, shapes and settings as it writes them, and back to the same bits."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from envs.errors import ConfigError, UpswingError
from rl.models import FAMILIES
from rl.models.base import Model, Params
from rl.models.family import Family
from rl.models.lora import lora
from rl.weights.peft import is_peft, load_adapter, read_settings, save_adapter

LLAMA = FAMILIES["llama"]
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def numbers(model: Model, targets: str, rank: int = 4) -> Params:
    """An adapter whose every number is another."""
    adapter = jax.eval_shape(lora(model, rank, 6.0, targets).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda like: jax.numpy.asarray(rng.normal(size=like.shape), like.dtype), adapter)


def saved(folder: Path, model: Model, adapter: Params, family: Family = LLAMA, **settings: Any) -> dict[str, Any]:
    settings = {"alpha": 6.0, "root": False, "base": "some/base", **settings}
    save_adapter(folder, family, model, adapter, **settings)
    return json.loads((folder / "adapter_config.json").read_text())


def test_files_are_those_of_peft(model, tmp_path: Path) -> None:
    adapter = numbers(model, "attention/(q|o)|ffn/down")
    config = saved(tmp_path, model, adapter)
    assert is_peft(tmp_path) and not is_peft(tmp_path.parent)
    wanted = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_rslora": False, "base_model_name_or_path": "some/base"}
    assert wanted.items() <= config.items()
    assert config["target_modules"] == ["down_proj", "o_proj", "q_proj"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * 3 * 2
    q, o = (adapter["layers"]["attention"][name] for name in "qo")
    np.testing.assert_array_equal(tensors[f"{Q0}.lora_A.weight"], np.asarray(q["a"][0]).T)  # [r, inputs]
    np.testing.assert_array_equal(tensors[f"{Q0}.lora_B.weight"], np.asarray(q["b"][0]).reshape(4, 32).T)
    second = "base_model.model.model.layers.1.self_attn.o_proj"
    np.testing.assert_array_equal(tensors[f"{second}.lora_A.weight"], np.asarray(o["a"][1]).reshape(32, 4).T)
    np.testing.assert_array_equal(tensors[f"{second}.lora_B.weight"], np.asarray(o["b"][1]).T)


def test_what_was_written_is_read(model, tmp_path: Path) -> None:
    adapter = numbers(model, "attention/(k|v|o)|ffn/up")
    saved(tmp_path, model, adapter, alpha=2.5, root=True)
    settings = read_settings(tmp_path, LLAMA, model)
    assert (settings.rank, settings.alpha, settings.root) == (4, 2.5, True)
    adapters = lora(model, settings.rank, settings.alpha, settings.targets, root=settings.root)
    like = adapters.init(jax.random.key(3))
    found = load_adapter(tmp_path, LLAMA, model, like)
    jax.tree.map(np.testing.assert_array_equal, found, adapter)


def experts_beside_shared_ones() -> tuple[Model, Family]:
    family = FAMILIES["glm4_moe"]
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 12, "max_position_embeddings": 16}
    experts = {"first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
    rest = {"moe_intermediate_size": 6, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "n_group": 1}
    more = {"topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": True, "use_qk_norm": False}
    config = {"model_type": "glm4_moe", "attention_bias": False, "partial_rotary_factor": 0.5, "rope_theta": 1e4}
    return family.build(family.read_config({**config, **sizes, **experts, **rest, **more})), family


def test_modules_of_one_name_are_told_apart(tmp_path: Path) -> None:
    model, family = experts_beside_shared_ones()
    assert saved(tmp_path, model, numbers(model, "attention/q"), family)["target_modules"] == ["q_proj"]
    upper = f"{model.stacks[1].name}/attention/q"
    config = saved(tmp_path, model, numbers(model, upper), family)
    modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in (1, 2)]
    assert config["target_modules"] == "|".join(module.replace(".", r"\.") for module in modules)
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {
        f"base_model.model.{module}.{part}.weight" for module in modules for part in ("lora_A", "lora_B")
    }
    assert read_settings(tmp_path, family, model).targets == upper


@pytest.mark.parametrize("targets", ["experts/up", "shared/up"])
def test_what_is_called_like_experts_is_no_module(tmp_path: Path, targets: str) -> None:
    model, family = experts_beside_shared_ones()
    with pytest.raises(ConfigError, match=f"PEFT has no module for .*/ffn/{targets}, .* merged export"):
        saved(tmp_path, model, numbers(model, targets), family)


@pytest.mark.parametrize(
    ("key", "value"),
    [("peft_type", "IA3"), ("use_dora", True), ("bias", "all"), ("rank_pattern", {"q_proj": 2})],
)
def test_other_kinds_of_adapters_are_refused(model, tmp_path: Path, key: str, value: object) -> None:
    config = saved(tmp_path, model, numbers(model, "attention/q"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ConfigError, match=f"adapter_config.json has {key}={value!r}; supported here"):
        read_settings(tmp_path, LLAMA, model)


def test_tensors_that_do_not_fit_name_themselves(model, tmp_path: Path) -> None:
    saved(tmp_path, model, numbers(model, "attention/q"))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if name != f"{Q0}.lora_B.weight"}, file)
    with pytest.raises(ConfigError, match=r"lacks .*layers\.0\.self_attn\.q_proj\.lora_B\.weight"):
        read_settings(tmp_path, LLAMA, model)
    save_file({**tensors, "base_model.model.lm_head.lora_A.weight": tensors[f"{Q0}.lora_A.weight"]}, file)
    with pytest.raises(ConfigError, match=r"no matrix for: base_model\.model\.lm_head\.lora_A\.weight"):
        read_settings(tmp_path, LLAMA, model)
    save_file({**tensors, f"{Q0}.lora_A.weight": tensors[f"{Q0}.lora_A.weight"][:, :30].copy()}, file)
    settings = read_settings(tmp_path, LLAMA, model)
    like = lora(model, settings.rank, settings.alpha, settings.targets).init(jax.random.key(0))
    with pytest.raises(UpswingError, match=r"q_proj.lora_A.weight' has shape \(4, 30\), but .* \(4, 32\)"):
        load_adapter(tmp_path, LLAMA, model, like)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UpswingError, match="damaged or cut short"):
        read_settings(tmp_path, LLAMA, model)
    file.unlink()
    with pytest.raises(ConfigError, match=r"has no adapter_model\.safetensors"):
        read_settings(tmp_path, LLAMA, model)
