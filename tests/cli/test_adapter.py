"""`model.lora`: what does not fit is refused in words, and a run finds its base and its adapter again."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.errors import ConfigError
from rl.checkpoint import Checkpoints
from rl.cli.adapter import with_adapter
from rl.cli.build import make_policy
from rl.cli.main import main
from rl.cli.model import model_of_run
from rl.config import HardwareConfig, LoraConfig, ModelConfig
from rl.models import FAMILIES
from rl.models.base import Model, Params
from rl.models.lora import dense, join, split
from rl.parallel.mesh import make_mesh
from rl.trainer.state import TrainState

BASE = ModelConfig(checkpoint="runs/base")
SMALL = ModelConfig(name="llama", layers=1, width=16, heads=2, kv_heads=1, ffn=16, context=64)


def made(lora: LoraConfig, model: Model, params: Params, config: ModelConfig = BASE) -> Params:
    return with_adapter(replace(config, lora=lora), FAMILIES["llama"], model, params, make_mesh({"data": 1}), {}, 0)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoraConfig(rank=-1), "model.lora: rank is -1; expected at least 1"),
        (LoraConfig(rank=2, targets="attn/q"), "model.lora: targets is 'attn/q', which matches none.* layers/ffn/up"),
        (LoraConfig(quantize="int8"), "without an adapter all weights are trained; set model.lora.rank=8"),
        (LoraConfig(rank=2, quantize="int4"), "model.lora.quantize.*int4.*int8"),
        (LoraConfig(adapter="nowhere"), "nowhere is no run: it has no config.yaml"),
    ],
)
def test_settings_that_do_not_fit(lora: LoraConfig, message: str, model, params) -> None:
    with pytest.raises(ConfigError, match=message):
        made(lora, model, params)


def test_fresh_weights_are_not_adapted(model, params) -> None:
    with pytest.raises(ConfigError, match="weights that have learnt something, and these are fresh"):
        made(LoraConfig(rank=2), model, params, ModelConfig())


def test_no_adapter_no_change(model, params) -> None:
    assert made(LoraConfig(), model, params, ModelConfig()) is params


def a_run(folder: Path, config: ModelConfig, trained: Params) -> str:
    """What training leaves of a model: its config and a checkpoint of what was trained."""
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps({"model": asdict(config)}))
    checkpoints = Checkpoints(folder / "checkpoints" / "train", every=1, keep=1)
    checkpoints.save(TrainState(trained, (), jnp.int32(1)))
    checkpoints.wait()
    return str(folder)


def test_a_run_brings_its_base_its_adapter_and_their_settings(model, params, tmp_path: Path) -> None:
    settings = LoraConfig(rank=2, alpha=6.0, targets="ffn/(up|down)", quantize="nf4")
    first = made(settings, model, params)
    trained = jax.tree.map(lambda x: x + 0.25, split(first)[0])
    one = a_run(tmp_path / "one", replace(BASE, lora=settings), trained)
    config = model_of_run(Path(one))
    assert config.checkpoint == "runs/base", "the base"
    again = made(config.lora, model, params)
    assert jax.tree.structure(again) == jax.tree.structure(first)
    assert again["layers"]["ffn"]["up"].scale == 3.0 and again["layers"]["ffn"]["up"].base.kind == "nf4"
    jax.tree.map(np.testing.assert_array_equal, split(again)[0], trained)

    two = a_run(tmp_path / "two", replace(BASE, lora=LoraConfig(adapter=one)), trained)
    onward = made(model_of_run(Path(two)).lora, model, params)
    assert jax.tree.structure(onward) == jax.tree.structure(first), "a run that went on from another's adapter"


def test_a_run_without_an_adapter_brings_its_weights(tmp_path: Path) -> None:
    run = a_run(tmp_path / "one", SMALL, {})
    assert model_of_run(Path(run)) == replace(SMALL, checkpoint=run)


def params_of(config: ModelConfig) -> Params:
    return make_policy(config, HardwareConfig(), seed=3).params


def assert_equal(found: Params, wanted: Params) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_an_adapter_is_exported_added_or_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = replace(SMALL, checkpoint=a_run(tmp_path / "base", SMALL, params_of(SMALL)))
    config = replace(base, lora=LoraConfig(rank=2, alpha=3.0, targets="attention/q|ffn/up", rslora=True))
    trained, frozen = split(params_of(config))
    trained = jax.tree.map(lambda x: x + 0.25, trained)
    run = a_run(tmp_path / "run", config, trained)

    assert main(["export", run, str(tmp_path / "added")]) == 0
    assert_equal(params_of(ModelConfig(source=str(tmp_path / "added"))), dense(join(trained, frozen)))

    assert main(["export", run, str(tmp_path / "alone"), "format=peft"]) == 0
    assert f"{tmp_path}/alone/adapter_model.safetensors  " in capsys.readouterr().out
    settings = json.loads((tmp_path / "alone" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (2, 3, True)
    assert settings["base_model_name_or_path"] == base.checkpoint
    again = params_of(replace(base, lora=LoraConfig(adapter=str(tmp_path / "alone"))))
    assert_equal(again, join(trained, frozen))


def test_exports_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "base", SMALL, {})
    for arguments, message in [
        ([run, str(tmp_path / "out"), "format=peft"], "base has no adapter, all of its weights were trained"),
        ([run, str(tmp_path / "out"), "format=gguf"], "unknown format 'gguf'; known: huggingface, peft"),
        ([run, str(tmp_path / "out"), "format=peft", "dtype=float32"], "rl export takes RUN DIR [dtype=DTYPE | format"),
    ]:
        assert main(["export", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
