"""`rl report` takes runs, sweeps, and names below runs/."""

import json
from pathlib import Path

import pytest

from rl.cli.main import main


def make_run(directory: Path, after: float, lr: float) -> None:
    """A finished run, as `rl train` writes it."""
    directory.mkdir(parents=True)
    config = {"env": {"name": "reverse_text"}, "algorithm": {"name": "grpo"}, "optimizer": {"lr": lr}}
    (directory / "config.yaml").write_text(json.dumps(config))
    (directory / "run.json").write_text(json.dumps({"status": "finished"}))
    rows = [{"stage": "train", "step": step, "reward": step / 10, "time": float(step)} for step in range(1, 5)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"before": 0.125, "after": after}
    summary = {key: {"exact_match": value, "ci95": [value - 0.05, value + 0.05]} for key, value in values.items()}
    (directory / "summary.json").write_text(json.dumps({"metric": "exact_match", **summary}))


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs" / "one", 0.625, 1e-4)
    make_run(tmp_path / "runs" / "sweeps" / "many" / "0", 0.5, 1e-4)
    make_run(tmp_path / "runs" / "sweeps" / "many" / "1", 0.75, 3e-4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.mark.parametrize("name", ["runs/one", "runs/one/", "one"])
def test_a_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", name]) == 0
    out = capsys.readouterr().out
    assert "0.125" in out and "0.625" in out and "report: runs/one/report.html" in out
    assert Path("runs/one/report.html").stat().st_size > 1000 and Path("runs/one/reward.png").stat().st_size > 1000


def test_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "sweeps/many"]) == 0
    out = capsys.readouterr().out
    assert "lr" in out and "0.750" in out and "report: runs/sweeps/many/report.html" in out
    assert Path("runs/sweeps/many/report.html").exists()


def test_several_runs_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "runs/one", "runs/sweeps/many/1"]) == 0
    last = capsys.readouterr().out.rpartition("picture: ")[2]
    assert "0.625" in last and "0.750" in last


def test_what_is_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 2
    expected = "error: no run named; expected rl report RUN, for example the directory that `rl train` printed\n"
    assert capsys.readouterr().err == expected
    assert main(["report", "runs/two"]) == 1
    assert capsys.readouterr().err.startswith("error: runs/two does not exist; expected the directory of a run")
