"""Trainings that are finished are read: their numbers, their table, and whose they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def training(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "training.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds as `rl train` and the script leave them, cut to what is read."""
    for seed, before, after in ((1, 0.25, 0.75), (2, 0.5, 0.625)):
        run = tmp_path / f"seed{seed}"
        run.mkdir()
        gain = after - before
        summary = {
            "metric": "exact_match",
            "before": {"exact_match": before, "ci95": [before - 0.125, before + 0.125], "tasks": 256},
            "after": {"exact_match": after, "ci95": [after - 0.125, after + 0.125], "tasks": 256},
            "gain": {"exact_match": gain, "ci95": [gain - 0.25, gain + 0.25]},
            "train_seconds": 100.4,
            "warm_start_seconds": 50.0,
        }
        (run / "summary.json").write_text(json.dumps(summary))
        told = ["experiment=reverse_text", f"seed={seed}", "steps=10"]
        (run / "cost.json").write_text(json.dumps({"told": told, "wall_s": 200.0, "cpu_s": 180.0}))
    return tmp_path


def test_finished_runs_become_a_line_of_json_and_a_table(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- seeds:begin -->\n<!-- seeds:end -->\nbelow\n")
    done = training("reverse_text", "steps=10", "--seeds", "1", "2", "--runs", str(runs), "--readme", str(page))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == result["experiment"] == "reverse_text" and result["settings"] == ["steps=10"]
    assert (result["seed_1.before"], result["seed_1.after"], result["seed_2.gain"]) == (0.25, 0.75, 0.125)
    assert (result["seed_1.gain_low"], result["seed_1.gain_high"]) == (0.25, 0.75)
    assert (result["least_gain"], result["least_gain_low"], result["least_after"]) == (0.125, -0.125, 0.625)
    assert (result["metric"], result["tasks"], result["seed_2.cpu_s"]) == ("exact_match", 256, 180.0)
    lines = page.read_text().splitlines()
    assert lines[4] == (
        "| 1 | 0.25 (0.12 to 0.38) | 0.75 (0.62 to 0.88) | **+0.50** (+0.25 to +0.75) | 100 s | 200 s | 180 s |"
    )
    assert lines[0] == "above" and lines[-1] == "below" and "cores of" in lines[-3]


def test_a_folder_of_other_settings_is_not_taken_for_these(runs: Path) -> None:
    done = training("reverse_text", "steps=20", "--seeds", "1", "--runs", str(runs))
    assert done.returncode == 1 and done.stdout == ""
    assert (
        "is a run of `experiment=reverse_text seed=1 steps=10`; expected `experiment=reverse_text seed=1 steps=20`"
        in done.stderr
    )


def test_an_unknown_experiment_is_told_with_its_closest_match() -> None:
    done = training("reverse_txt")
    assert done.returncode == 1 and "unknown experiment 'reverse_txt'" in done.stderr and "reverse_text" in done.stderr
