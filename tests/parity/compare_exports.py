"""Hugging Face transformers reads what we write: config, weights and tokenizer. Part of `make test-parity`."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import parity_ours
import pytest
from parity_cases import CASES, LENGTH, weight

from envs.render import ByteRenderer
from rl.cli.build import make_policy
from rl.cli.export import write_directory
from rl.config import HardwareConfig, ModelConfig
from rl.weights.save import save_config, save_weights

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "models"
FRESH = ModelConfig(name="qwen3", layers=2, width=64, heads=2, kv_heads=1, ffn=96)


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case, and a model of our own, written by us and read by transformers."""
    folder = tmp_path_factory.mktemp("exports")
    for name in CASES:
        golden = np.load(GOLDEN / f"{name}.npz")
        config, shapes = json.loads(str(golden["config"])), json.loads(str(golden["tensors"]))
        family = parity_ours.family_of(config["model_type"])
        model, params, _ = parity_ours.load(config, lambda tensor, shapes=shapes: weight(tensor, shapes[tensor]))
        (folder / name).mkdir()
        save_weights(folder / name, family, model, params, dtype=lambda tensor: "float32")
        save_config(folder / name, family.write_config(model.config), None, "float32")
    (folder / "ours").mkdir()
    write_directory(folder / "ours", make_policy(FRESH, HardwareConfig(), seed=0), None)
    command = [os.environ["PARITY_PYTHON"], str(HERE / "load_exports.py"), str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=1800)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_every_family(name: str, exports: Path) -> None:
    """The config is the one that the family writes, not the one it was read from."""
    found, golden = np.load(exports / "logits.npz")[name], np.load(GOLDEN / f"{name}.npz")["logits"]
    assert len(found) == LENGTH
    np.testing.assert_allclose(found, golden[:LENGTH], rtol=0, atol=2e-5)


def test_a_model_of_our_own(exports: Path) -> None:
    policy = make_policy(FRESH, HardwareConfig(), seed=0)
    expected = parity_ours.logits(policy.model, policy.params)["alone"]
    np.testing.assert_allclose(np.load(exports / "logits.npz")["ours"], expected[:LENGTH], rtol=0, atol=2e-5)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "wörld 🙂"}]
    assert json.loads((exports / "ids.json").read_text()) == {"ours": ByteRenderer().prompt(messages)}
