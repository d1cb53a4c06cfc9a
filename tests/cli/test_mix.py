"""Demonstrations of one environment in the updates of another."""

import json
from pathlib import Path

import pytest

from envs import ConfigError
from rl.cli.build import make_mix
from rl.cli.compose import compose
from rl.cli.main import main

SMALL = ["env=reverse_text", "model.layers=1", "model.width=16", "model.heads=1", "model.kv_heads=1", "model.ffn=16"]
RUN = [*SMALL, "model.context=32", "sampling.max_tokens=8", "pack.row_length=64", "prompts=2", "group_size=2"]
RUN += ["steps=4", "eval.tasks=2", "pack.rows_per_microbatch=4", "inference.slots=4", "optimizer.lr=1e-2"]


def test_rollouts_and_demonstrations_are_trained_on_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mix = "mix={phrases: {env: {name: reverse_text, unit: phrase, max_length: 8}, ce: 0.5, ref_kl: 0.1, batch: 4}}"
    assert main(["train", *RUN, mix, "run_dir=run"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["nonfinite"] for row in rows] == [0.0] * 4
    assert rows[-1]["cross_entropy"] < rows[0]["cross_entropy"]
    assert rows[0]["ref_kl"] == 0 < rows[-1]["ref_kl"], "it begins as its own reference"
    assert all(row["mismatch/k3"] < 1e-8 and row["share/rl"] + row["share/ce"] == pytest.approx(1) for row in rows)


def test_a_choice_of_ours_and_settings_on_the_command_line() -> None:
    settings = compose("train", ["mix=alphabet_sort", "mix.alphabet_sort.ce=0.3", "mix.wordle.batch=4"]).config.mix
    assert settings["alphabet_sort"]["ce"] == 0.3 and settings["wordle"] == {"batch": 4}
    sorting, guessing = make_mix(settings, seed=0)
    assert sorting.environment.name == "alphabet_sort" and sorting.components == {"ce": 0.3, "ref_kl": 0.0}
    assert (sorting.schedule.size, guessing.schedule.size) == (8, 4)
    with pytest.raises(ConfigError, match="mix 'wordle': ce=0, ref_kl=0; expected weights, one above 0"):
        make_mix({"wordle": {"ce": 0.0}}, seed=0)
    with pytest.raises(ConfigError, match="mix 'wordle' has no argument 'weight'"):
        make_mix({"wordle": {"weight": 0.0}}, seed=0)
