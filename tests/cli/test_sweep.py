"""`-m`: every combination runs in a directory of its own; one that fails is shown and the others go on."""

import json
import re
from pathlib import Path

import pytest
import yaml

from envs.resolve import list_environments
from rl.cli import conf
from rl.cli.main import main
from rl.cli.overrides import fixed

SMALL = [
    "model.layers=1",
    "model.width=16",
    "model.heads=2",
    "model.kv_heads=1",
    "model.ffn=32",
    "model.context=32",
    "inference.slots=8",
    "pack.row_length=32",
    "pack.rows_per_microbatch=4",
    "sampling.max_tokens=8",
    "steps=1",
    "prompts=2",
    "group_size=2",
    "eval.tasks=4",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


def everything() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def test_what_all_runs_share() -> None:
    given = ["seed=1,2", "steps=3", "optimizer.lr=choice(1,2)", "prompts=range(1,4)", 'run_dir="a,b"', "env={a:[1,2]}"]
    assert fixed(given) == ["steps=3", 'run_dir="a,b"', "env={a:[1,2]}"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer.lr=1e-4,abc"], "optimizer.lr is 'abc'; expected a number, for example optimizer.lr=0.0003"),
        (["seed=1,2", "steps=x"], "steps is 'x'; expected a whole number, for example steps=100"),
        (
            ["algorithm=grpo,gpro", "seed=1,2"],
            "unknown algorithm 'gpro'; did you mean 'gspo' or 'grpo' or 'gmpo'?; "
            f"known: {', '.join(conf.options('algorithm'))}; see rl train --help",
        ),
        (
            ["env=reverse_text,wordel"],
            "unknown environment 'wordel'; did you mean 'wordle'?; "
            f"known: {', '.join(info.name for info in list_environments())}; "
            "a folder is given as a path, like ./my_environment",
        ),
    ],
)
def test_a_combination_that_does_not_fit_is_refused_before_any_run(
    settings: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", *settings]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {message}\n")
    assert set(everything()) <= {"runs", "runs/sweeps"}


def test_a_run_that_fails_does_not_take_the_others_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["algorithm=grpo,rloo", "algorithm.clip_low=0.1,abc", "hydra.sweep.dir=runs/mine"]
    assert main(["train", "-m", *settings, *SMALL]) == 1
    runs = [Path("runs/mine") / str(number) for number in range(4)]

    for run, name in zip(runs, ["grpo", "grpo", "rloo", "rloo"], strict=True):
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["algorithm"]["name"] == name
        assert config["run_dir"] == str(run)
    failed = [json.loads((run / "run.json").read_text())["status"] == "failed" for run in runs]
    assert failed == [False, True, False, True]
    assert (runs[0] / "summary.json").exists() and not (runs[1] / "summary.json").exists()

    out, err = capsys.readouterr()
    assert "run 3 of the sweep: algorithm.clip_low=abc algorithm=rloo\n" in out
    assert (
        re.search(r"2 +algorithm=rloo +", out) and "leave_one_out" not in out
    )  # what follows from a choice is not told
    assert "failed: runs/mine/1" in out and "failed: runs/mine/3" in out and "failed: runs/mine/0" not in out
    assert "report: runs/mine/report.html" in out
    assert "clip_low" in err and "abc" in err and "Traceback" not in err


def test_hydra_leaves_nothing_but_its_record_of_the_sweep() -> None:
    main(["train", "-m", "algorithm.clip_low=abc,def", "hydra.sweep.dir=runs/mine", *SMALL])
    left = [path for path in everything() if "hydra" in path or path.endswith(".log") or "outputs" in path]
    assert left == []
    assert Path("runs/mine/multirun.yaml").exists()
