"""Whole runs, as a user starts them: the reward rises; killed and resumed, the same bits come out."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rl.rollout.journal import read_rollouts

SMALL = [
    "env=reverse_text",
    "env.min_length=3",
    "env.max_length=4",
    "model.layers=1",
    "model.width=64",
    "model.heads=2",
    "model.kv_heads=1",
    "model.ffn=128",
    "model.context=32",
    "sampling.max_tokens=8",
    "pack.row_length=32",
    "inference.slots=64",
    "eval.tasks=64",
    "eval.metric=similarity",
    "optimizer.lr=2e-3",
    "checkpoint.every=4",
]


def command(*settings: str) -> list[str]:
    return [sys.executable, "-m", "rl.cli.train", *SMALL, *settings]


COMPILED = tempfile.TemporaryDirectory()  # shared by all runs here, and by nothing else


def environment() -> dict[str, str]:
    """What a user's shell has: none of the settings of the tests."""
    shell = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return {**shell, "XDG_CACHE_HOME": COMPILED.name}


def run(tmp_path: Path, *settings: str, code: int = 0) -> str:
    done = subprocess.run(command(*settings), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def rows(run_dir: Path, stage: str = "train") -> list[dict[str, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["stage"] == stage]


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    from rl.checkpoint import load_params

    return by_name(load_params(run_dir, untrained(run_dir).params))


def critic(run_dir: Path) -> dict[str, np.ndarray]:
    from rl.checkpoint import load_critic
    from rl.trainer.critic import init_critic

    policy = untrained(run_dir)
    like = init_critic("separate", policy.model.config.width, policy.params).params
    return by_name(load_critic(run_dir, like))


def untrained(run_dir: Path):
    from rl.cli.build import make_policy
    from rl.cli.model import model_of_run
    from rl.config import HardwareConfig

    return make_policy(replace(model_of_run(run_dir), checkpoint=None), HardwareConfig(), seed=0)


def by_name(tree) -> dict[str, np.ndarray]:
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def test_reward_rises_without_any_demonstration(tmp_path):
    """From random weights: the model finds out by itself to stop in time and to use the letters it was given."""
    out = run(tmp_path, "steps=40", "prompts=16", "group_size=8", "run_dir=run", "seed=3")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["gain"]["ci95"][0] > 0.05, summary
    assert summary["after"]["similarity"] > 2 * summary["before"]["similarity"]
    steps = rows(tmp_path / "run")
    assert [row["step"] for row in steps] == list(range(1, 41))
    assert all(row["mismatch/k3"] < 1e-8 and row["staleness"] == 0 for row in steps)
    assert steps[-1]["compilations"] == steps[4]["compilations"], "something compiled in steady state"
    assert "report.html" in out and (tmp_path / "run" / "reward.png").read_bytes().startswith(b"\x89PNG")
    tasks = [t.task.id for t in read_rollouts(tmp_path / "run" / "rollouts" / "step_000001.parquet")]
    assert len(tasks) == 128 and len(set(tasks)) == 16


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(folder, *RESUMABLE)
    return folder / "run"


RESUMABLE = ["steps=10", "prompts=4", "group_size=4", "warm_start.steps=6", "warm_start.batch=16", "run_dir=run"]


@pytest.mark.parametrize("stage", ["warm_start", "train"])
def test_killed_and_resumed_it_ends_in_the_same_bits(tmp_path, uninterrupted, stage):
    process = subprocess.Popen(command(*RESUMABLE), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    wait_for(tmp_path / "run", stage, steps=5, process=process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run(tmp_path, *RESUMABLE, "resume=true")

    ours, theirs = weights(tmp_path / "run"), weights(uninterrupted)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    for when in ("before", "after", "gain"):
        first, second = (json.loads((r / "summary.json").read_text())[when] for r in (tmp_path / "run", uninterrupted))
        assert first == second
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 11))
    for key in ("reward", "loss", "grad_norm", "entropy"):
        assert [row[key] for row in rows(tmp_path / "run")] == [row[key] for row in rows(uninterrupted)]


CRITIC = ["algorithm=ppo", "steps=8", "prompts=4", "group_size=2", "eval.tasks=8", "run_dir=run"]


def test_with_a_critic_it_ends_in_the_same_bits_too(tmp_path, tmp_path_factory):
    """Killed after 5 updates; the newest checkpoint is of the 4th."""
    straight = tmp_path_factory.mktemp("straight")
    run(straight, *CRITIC)
    process = subprocess.Popen(command(*CRITIC), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    wait_for(tmp_path / "run", "train", steps=5, process=process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run(tmp_path, *CRITIC, "resume=true")
    ours, theirs = tmp_path / "run", straight / "run"
    for found, expected in ((weights(ours), weights(theirs)), (critic(ours), critic(theirs))):
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert np.abs(critic(ours)["['weight']"]).max() > 0, "it has learned something"
    for key in ("reward", "loss", "grad_norm", "critic_grad_norm", "value_loss", "explained_variance"):
        assert [row[key] for row in rows(ours)] == [row[key] for row in rows(theirs)]


@pytest.mark.parametrize(
    ("sent", "ctrl_c"), [(signal.SIGINT, "default_int_handler"), (signal.SIGTERM, "SIG_IGN")], ids=["ctrl-c", "cluster"]
)
def test_a_signal_checkpoints_and_says_how_to_go_on(tmp_path, uninterrupted, sent, ctrl_c):
    # A shell that starts a run in the background has it ignore Ctrl-C, and children inherit that.
    start = (
        f"import signal, sys; signal.signal(signal.SIGINT, signal.{ctrl_c}); "
        "from rl.cli.main import main; sys.exit(main(['train', *sys.argv[1:]]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start, *SMALL, *RESUMABLE],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(tmp_path / "run", "train", steps=2, process=process)
    process.send_signal(sent)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, out
    assert "Continue with the same command and resume=true" in out and "Traceback" not in out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    run(tmp_path, *RESUMABLE, "resume=true")
    ours, theirs = weights(tmp_path / "run"), weights(uninterrupted)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(tmp_path):
    settings = ["steps=10", "prompts=4", "group_size=4", "run_dir=run", "optimizer.lr=1e30", "seed=1"]
    out = run(tmp_path, *settings, code=1)
    assert "is not finite" in out and "tasks:" in out and "Traceback" not in out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    kept = weights(tmp_path / "run")
    assert all(np.isfinite(value).all() for value in kept.values())


def wait_for(run_dir: Path, stage: str, steps: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the run ended early with code {process.returncode}"
        if (run_dir / "metrics.jsonl").is_file() and len(rows(run_dir, stage)) >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {steps} steps of {stage} within 300 s")
