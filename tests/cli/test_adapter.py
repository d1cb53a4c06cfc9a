"""`model.lora`: what does not fit is refused in words, and a run finds its base and its adapter again."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from envs.errors import ConfigError
from rl.checkpoint import Checkpoints
from rl.cli.adapter import with_adapter
from rl.cli.model import model_of_run
from rl.config import LoraConfig, ModelConfig
from rl.models.base import Model, Params
from rl.models.lora import split
from rl.parallel.mesh import make_mesh
from rl.trainer.state import TrainState

BASE = ModelConfig(checkpoint="runs/base")


def made(lora: LoraConfig, model: Model, params: Params, config: ModelConfig = BASE) -> Params:
    return with_adapter(replace(config, lora=lora), model, params, make_mesh({"data": 1}), {}, 0)


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


def write_run(path: Path, lora: dict[str, object], trained: Params) -> None:
    """What training leaves of a model: its config and a checkpoint of what was trained."""
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump({"model": {"checkpoint": "runs/base", "lora": lora}}))
    checkpoints = Checkpoints(path / "checkpoints" / "train", every=1, keep=1)
    checkpoints.save(TrainState(trained, (), jnp.int32(1)))
    checkpoints.wait()


def test_a_run_brings_its_base_its_adapter_and_their_settings(model, params, tmp_path: Path) -> None:
    settings = {"rank": 2, "alpha": 6.0, "targets": "ffn/(up|down)", "quantize": "nf4"}
    first = made(LoraConfig(**settings), model, params)
    trained = jax.tree.map(lambda x: x + 0.25, split(first)[0])
    write_run(tmp_path / "one", settings, trained)
    config = model_of_run(tmp_path / "one")
    assert config.checkpoint == "runs/base", "the base"
    again = made(config.lora, model, params)
    assert jax.tree.structure(again) == jax.tree.structure(first)
    assert again["layers"]["ffn"]["up"].scale == 3.0 and again["layers"]["ffn"]["up"].base.kind == "nf4"
    jax.tree.map(np.testing.assert_array_equal, split(again)[0], trained)

    write_run(tmp_path / "two", {"adapter": str(tmp_path / "one")}, trained)
    onward = made(model_of_run(tmp_path / "two").lora, model, params)
    assert jax.tree.structure(onward) == jax.tree.structure(first), "a run that went on from another's adapter"


def test_a_run_without_an_adapter_brings_its_weights(tmp_path: Path) -> None:
    write_run(tmp_path / "one", {}, {})
    config = model_of_run(tmp_path / "one")
    assert config.checkpoint == str(tmp_path / "one") and config.lora == LoraConfig()
