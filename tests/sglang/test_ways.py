"""A small run by the command line, for each way of publishing that test_run.py does not take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl.rollout.journal import read_rollouts

SETTINGS = [
    *("env=reverse_text", "env.min_length=3", "env.max_length=4"),
    *("model=tiny_qwen3", "model.layers=1", "model.width=64", "model.ffn=64", "model.heads=2", "model.kv_heads=1"),
    *("model.context=32", "sampling.max_tokens=8", "pack.row_length=32", "prompts=4", "group_size=4", "steps=3"),
    *("inference=sglang", "inference.slots=16", "eval.tasks=4", "run_dir=run"),
]


@pytest.mark.parametrize("publish", ["tensor", "distributed"])
def test_three_updates(tmp_path: Path, publish: str) -> None:
    command = [sys.executable, "-m", "rl.cli.train", *SETTINGS, f"inference.publish={publish}"]
    shell = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    run = subprocess.run(command, cwd=tmp_path, env=shell, capture_output=True, text=True, timeout=600)
    logs = "".join(f"\n{path}:\n{path.read_text(errors='replace')[-5000:]}" for path in tmp_path.rglob("server-*.log"))
    assert run.returncode == 0, run.stdout + run.stderr + logs
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    updates = [row for row in lines if row["stage"] == "train"]
    assert [row["step"] for row in updates] == [1, 2, 3]
    assert all(row["mismatch/k3"] < 1e-5 and row["staleness"] == row["failed"] == 0 for row in updates)
    for update in range(3):
        drawn = read_rollouts(tmp_path / "run" / "rollouts" / f"step_{update + 1:06d}.parquet")
        assert len({(t.task.id, t.sample) for t in drawn}) == len(drawn) == 16
        assert {v for t in drawn for turn in t.turns for v in turn.completion.versions or ()} == {update}
