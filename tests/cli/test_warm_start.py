"""What a warm start learns from, and by which rule."""

import json
from pathlib import Path

import pytest

from envs import ConfigError
from rl.cli.build import make_warm_environment
from rl.cli.main import main

MODEL = ["model.layers=1", "model.width=16", "model.heads=1", "model.kv_heads=1", "model.ffn=16", "model.context=32"]
RUN = [*MODEL, "env=reverse_text", "steps=1", "prompts=2", "group_size=2", "eval.tasks=2", "sampling.max_tokens=8"]
RUN += ["inference.slots=4", "pack.row_length=64", "pack.rows_per_microbatch=4"]


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["stage"] == "warm_start"]


def test_demonstrations_of_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = ["train", *RUN, "warm_start.steps=2", "warm_start.batch=8", "warm_start.optimizer=sign"]
    assert main([*run, "env.max_length=4", "run_dir=short"]) == 0
    assert main([*run, "warm_start.env={max_length: 4}", "run_dir=practice"]) == 0
    assert losses(tmp_path / "short") == losses(tmp_path / "practice") != []


def test_settings_of_the_run_hold_unless_the_warm_start_has_its_own() -> None:
    own = {"name": "reverse_text", "min_length": 3, "max_length": 8}
    longest = {
        len(task.prompt[-1]["content"] or "")
        for task in make_warm_environment(own, {"max_length": 4}).training_tasks().head(64)
    }
    assert longest == {3, 4}
    assert make_warm_environment(own, {"name": "wordle"}).name == "wordle"
    with pytest.raises(ConfigError, match="'reverse_text' has no argument 'max_lenght'; did you mean 'max_length'"):
        make_warm_environment(own, {"max_lenght": 4})


def test_a_rule_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *RUN, "warm_start.optimizer=moun"]) == 2
    assert "unknown warm_start.optimizer 'moun'; did you mean 'muon'" in capsys.readouterr().err
