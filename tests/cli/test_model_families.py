"""What a family does not compute is refused: one line that names the key, its value and what would do."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from envs.errors import ConfigError
from rl.cli.main import main
from rl.cli.model import open_model
from rl.config import ModelConfig

REFUSED = {
    "model.options={hidden_act: gelu}": "config.json of a llama model has hidden_act='gelu'; supported here: 'silu'",
    "model.options={rope_scaling: {rope_type: longrope}}": "config.json: rope type is 'longrope'; known: default, "
    "linear, dynamic, llama3, yarn",
    "model.name=qwen3_moe": "config.json of a qwen3_moe model has no num_experts",
    "model={name: qwen2, options: {layer_types: [chunked_attention]}}": "config.json: layer_types has "
    "'chunked_attention'; supported here: full_attention, sliding_attention",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_options_that_a_family_does_not_compute(
    setting: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what a run leaves behind is not for the reader's own runs/
    assert main(["eval", "env=reverse_text", "model=tiny", setting]) == 2
    assert capsys.readouterr().err == f"error: model: {REFUSED[setting]}\n"


def test_a_checkpoint_that_a_family_does_not_compute(tmp_path: Path) -> None:
    config = {"model_type": "gemma3_text", "final_logit_softcapping": 30.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"model.norm.weight": np.ones(4, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"gemma3_text model has final_logit_softcapping=30\.0; supported here: None"):
        open_model(ModelConfig(source=str(tmp_path)))
