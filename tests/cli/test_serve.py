"""`rl serve`: what it makes of its config, and where new weights come from while it runs."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.errors import ConfigError
from rl.checkpoint import Checkpoints
from rl.cli.build import Policy, make_policy
from rl.cli.export import export
from rl.cli.main import main
from rl.cli.reload import weights_reader
from rl.config import HardwareConfig, ModelConfig
from rl.models.base import Params
from rl.trainer.optimizer import adamw
from rl.trainer.state import init_state

SMALL = ModelConfig(name="llama", layers=1, width=16, heads=2, kv_heads=1, ffn=16, context=64)


def a_run(folder: Path, config: ModelConfig, params: Params) -> Path:
    """A run with one checkpoint."""
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps({"model": asdict(config)}))
    checkpoints = Checkpoints(folder / "checkpoints" / "train", every=1, keep=1)
    state = init_state(jax.tree.map(jnp.copy, params), adamw(steps=1))
    checkpoints.save(state._replace(step=jnp.asarray(1, jnp.int32)))
    checkpoints.wait()
    return folder


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy(SMALL, HardwareConfig(), seed=0)


@pytest.fixture(scope="module")
def published(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights are those served plus one, and the same as a Hugging Face directory without a tokenizer."""
    folder = tmp_path_factory.mktemp("published")
    run = a_run(folder / "run", SMALL, jax.tree.map(lambda x: x + 1, policy.params))
    export(str(run), folder / "hf", None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "hf" / name).unlink()
    return folder


@pytest.mark.parametrize("name", ["run", "hf"])
def test_weights_are_read_as_they_were_published(name: str, policy: Policy, published: Path) -> None:
    read = weights_reader(policy, HardwareConfig(), "float32")
    found = read(str(published / name))
    wanted = jax.tree.map(lambda x: x + 1, policy.params)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert jax.tree.map(lambda a: a.sharding, found) == jax.tree.map(lambda a: a.sharding, policy.params)


def test_weights_of_another_model_are_refused(policy: Policy, published: Path, tmp_path: Path) -> None:
    read = weights_reader(policy, HardwareConfig(), "float32")
    other = replace(SMALL, ffn=32)
    run = a_run(tmp_path / "run", other, make_policy(other, HardwareConfig(), seed=0).params)
    with pytest.raises(ConfigError, match=r"the run has another model than the one that is served: .*ffn.* is \(\(1, "):
        read(str(run))
    config = json.loads((published / "hf" / "config.json").read_text())
    for change, message in (
        ({"rope_theta": 5.0}, "it is another model than the one that is served: ropes"),
        ({"model_type": "qwen2"}, "its model_type is 'qwen2', of another family than the served"),
    ):
        folder = tmp_path / next(iter(change))
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        (folder / "model.safetensors").symlink_to(published / "hf" / "model.safetensors")
        with pytest.raises(ConfigError, match=message):
            read(str(folder))
    with pytest.raises(ConfigError, match=r"there is no such file or folder"):
        read(str(tmp_path / "nowhere"))


def test_a_server_is_one_and_has_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "-m", "port=1,2"]) == 2
    assert "rl serve is one server; it takes no -m" in capsys.readouterr().err
    assert main(["serve", "api_key_env=UPSWING_NO_SUCH_KEY"]) == 2
    assert capsys.readouterr().err == "error: api_key_env names UPSWING_NO_SUCH_KEY, but that variable is not set\n"
