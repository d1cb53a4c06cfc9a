"""A whole run, as a user starts it, whose server is killed under it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from real_servers import schedulers

from rl.rollout.journal import read_rollouts

SETTINGS = [
    *("env=reverse_text", "env.min_length=3", "env.max_length=4"),
    *("model=tiny_qwen3", "model.layers=1", "model.width=64", "model.ffn=64", "model.heads=2", "model.kv_heads=1"),
    *("model.context=32", "sampling.max_tokens=8", "pack.row_length=32", "prompts=4", "group_size=4", "steps=24"),
    *("inference=sglang", "inference.slots=16", "eval.tasks=4", "run_dir=run"),
]


def test_a_server_killed_twice_costs_time_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rl.cli.train", *SETTINGS]
    shell = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    log = tmp_path / "log"
    with log.open("w") as out:
        run = subprocess.Popen(command, cwd=tmp_path, env=shell, stdout=out, stderr=subprocess.STDOUT)
    try:
        killed = []
        for update in (3, 7):
            while len(rows(tmp_path)) < update and run.poll() is None:
                time.sleep(0.05)
            assert run.poll() is None, log.read_text()
            killed.append([process.pid for process in schedulers(psutil.Process(run.pid))])
            for pid in killed[-1]:
                os.kill(pid, signal.SIGKILL)
        assert run.wait(600) == 0, log.read_text()
    finally:
        run.kill()
        run.wait()
    assert all(killed) and set(killed[0]).isdisjoint(killed[1]), "each was a server of its own"
    updates = rows(tmp_path)
    assert [row["step"] for row in updates] == list(range(1, 25))
    assert all(row["mismatch/k3"] < 1e-8 and row["staleness"] == row["failed"] == 0 for row in updates)
    for update in range(24):
        drawn = read_rollouts(tmp_path / "run" / "rollouts" / f"step_{update + 1:06d}.parquet")
        assert len({(t.task.id, t.sample) for t in drawn}) == len(drawn) == 16
        assert {v for t in drawn for turn in t.turns for v in turn.completion.versions or ()} == {update}


def rows(folder: Path) -> list[dict[str, float]]:
    file = folder / "run" / "metrics.jsonl"
    text = file.read_text() if file.is_file() else ""
    lines = [
        json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")
    ]  # the last may come yet
    return [row for row in lines if row["stage"] == "train"]
