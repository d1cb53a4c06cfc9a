"""Run directories with made-up numbers, in the format that the trainer writes. Also a command, to look at reports:

python tests/rl/fake_run.py /tmp/runs
"""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import yaml

from envs.record import Journal
from envs.statistics import difference, estimate
from envs.types import Completion, Failure, Task, Trajectory, Turn

HOSTILE = "</script><img src=x onerror=alert(1)><!-- </pre></style> \x1b[31m\u202e \ud800 & \"quotes\" 'single'"


def config(**changes: Any) -> dict[str, Any]:
    """A composed configuration; `changes` name nested keys with `__`."""
    tree: dict[str, Any] = {
        "env": {"name": "arithmetic", "digits": 2},
        "algorithm": {"name": "grpo", "clip_low": 0.2, "clip_high": 0.28, "normalise_std": True, "kl": None},
        "model": {"name": "decoder", "layers": 4, "width": 128, "heads": 4, "context": 256, "checkpoint": None},
        "optimizer": {"lr": 3e-4, "schedule": "constant", "b1": 0.9, "max_grad_norm": 1.0},
        "hardware": {"platform": "cpu", "mesh": {"data": 1, "fsdp": 1}, "rules": {}, "compute_dtype": "float32"},
        "eval": {"tasks": 256, "samples": 1, "temperature": 1.0, "split": "eval", "metric": "exact_match"},
        "seed": 0,
        "steps": 100,
        "prompts": 32,
        "group_size": 8,
        "run_dir": None,
        "resume": False,
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        node = tree
        for part in path:
            node = node[part]
        node[last] = value
    return tree


def trajectory(index: int, right: bool, text: str | None = None, failure: bool = False) -> Trajectory:
    """A rollout of one made-up sum."""
    a, b = 17 + index * 7 % 80, 11 + index * 13 % 88
    task = Task.ask(f"eval-{index:04d}", f"What is {a} + {b}?", str(a + b), system="Answer with the number only.")
    said = text if text is not None else f"{a} + {b} = {a + b if right else a + b - 10}"
    completion = Completion({"role": "assistant", "content": said}, "stop", versions=[0])
    done = Trajectory(task, turns=[Turn(task.prompt, completion, fresh=True)], stop="completed")
    if failure:
        done.failure = Failure("infrastructure", "TimeoutError", "the judge did not answer")
        return done
    done.reward = 1.0 if right else 0.2
    done.rewards = {"correct": float(right), "short": 0.2}
    done.metrics = {"exact_match": float(right)}
    return done


def train_row(step: int, steps: int, draw: random.Random, top: float) -> dict[str, Any]:
    """Metrics of one update on a run that learns."""
    level = 0.3 + top / (1 + math.exp(-8 * (step / steps - 0.4)))
    return {
        "stage": "train",
        "step": step,
        "time": step * 1.2,
        "reward": level + draw.gauss(0, 0.035),
        "reward_std": 0.4 * (1 - level) + 0.05,
        "metrics/exact_match": level - 0.08 + draw.gauss(0, 0.04),
        "rewards/correct": level - 0.08,
        "rewards/short": 0.2,
        "loss": draw.gauss(0, 0.01),
        "grad_norm": 0.9 * math.exp(-step / steps) + abs(draw.gauss(0, 0.15)),
        "entropy": 1.4 * math.exp(-1.5 * step / steps) + draw.gauss(0, 0.02),
        "clip_fraction": abs(draw.gauss(0.012, 0.004)),
        "kl": abs(draw.gauss(0.002, 0.0008)),
        "mismatch/k3": abs(draw.gauss(0, 2e-7)),
        "completion_tokens": 9.0 + 3 * step / steps + draw.gauss(0, 0.2),
        "staleness": 0.0,
        "lr": 3e-4,
        "sampled_tokens_per_s": (9_800 if step > 1 else 1_200) + draw.gauss(0, 250),
        "trained_tokens_per_s": (14_300 if step > 1 else 2_300) + draw.gauss(0, 300),
        "compilations": 3 if step == 1 else 0,
        "seconds": 1.2,
    }


def build_run(
    path: Path,
    *,
    steps: int = 100,
    done: int | None = None,
    tasks: int = 256,
    seed: int = 0,
    top: float = 0.6,
    status: str = "finished",
    hostile: bool = False,
    **changes: Any,
) -> Path:
    """Write a run directory.

    Args:
        path: where to; created.
        steps: updates the run was to do.
        done: updates it has done, all if None. A run that is not finished has no evaluation afterwards.
        tasks: held-out tasks.
        seed: of the made-up numbers.
        top: how much the reward rises.
        status: as in run.json.
        hostile: put text that attacks the page into completions, prompts, names and configuration.
        changes: configuration keys, see `config`.
    """
    draw, done = random.Random(seed), steps if done is None else done
    (path / "evals").mkdir(parents=True)
    tree = config(steps=steps, seed=seed, **changes)
    info: dict[str, Any] = {
        "status": status,
        "started": "2026-11-22T10:04:11+00:00",
        "seconds": done * 1.3 + 8,
        "error": "EngineError: no answer for 60 s" if status == "failed" else None,
        "machine": {"cpu": "AMD EPYC 7B13", "cores": 2},
        "versions": {"python": "3.11.7", "jax": "0.10.0", "upswing": "0.1.0"},
        "environment": {"name": "arithmetic", "version": "0.1.0"},
        "parameters": 842_112,
    }
    if hostile:
        tree["env"]["note"] = HOSTILE
        tree["algorithm"]["name"] = "<b>grpo</b>"
        info["machine"]["cpu"] = info["environment"]["name"] = HOSTILE
    (path / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    (path / "run.json").write_text(json.dumps(info))
    warm = [
        {"stage": "warm_start", "step": i, "time": i * 0.1, "loss": 2.3 * math.exp(-i / 15) + 0.4, "grad_norm": 1.0}
        for i in range(1, 41)
    ]
    rows = warm + [train_row(step, steps, draw, top) for step in range(1, done + 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    was = [draw.random() < 0.3 for _ in range(tasks)]
    now = [draw.random() < (0.85 * top / 0.6 if not old else 0.95) for old in was]
    write_evals(path / "evals" / "before.jsonl", was, hostile)
    if status == "finished":
        write_evals(path / "evals" / "after.jsonl", now, hostile)
        (path / "summary.json").write_text(json.dumps(summary(was, now, steps, seed, str(path))))
    return path


def write_evals(path: Path, right: list[bool], hostile: bool) -> None:
    rollouts = [trajectory(i, value) for i, value in enumerate(right)]
    if hostile:
        rollouts[: len(rollouts) // 2] = [
            trajectory(i, value, text=HOSTILE) for i, value in enumerate(right[: len(rollouts) // 2])
        ]
        rollouts[-1] = trajectory(len(right) - 1, False, failure=True)
    with Journal(path) as journal:
        for rollout in rollouts:
            journal.append(rollout)


def summary(was: list[bool], now: list[bool], steps: int, seed: int, run_dir: str) -> dict[str, Any]:
    """What the trainer computes from the two evaluations."""

    def side(values: list[bool]) -> dict[str, Any]:
        match, reward = estimate([[float(v)] for v in values]), estimate([[1.0 if v else 0.2] for v in values])
        return {
            "exact_match": match.mean,
            "ci95": [match.low, match.high],
            "reward": reward.mean,
            "reward_ci95": [reward.low, reward.high],
            "tasks": len(values),
        }

    gain = difference([float(v) for v in was], [float(v) for v in now])
    return {
        "before": side(was),
        "after": side(now),
        "gain": {"exact_match": gain.mean, "ci95": [gain.low, gain.high]},
        "metric": "exact_match",
        "train_seconds": steps * 1.2,
        "steps": steps,
        "seed": seed,
        "run_dir": run_dir,
    }


def main(root: Path) -> None:
    build_run(root / "finished")
    build_run(root / "hostile", hostile=True, tasks=40)
    build_run(root / "running", status="running", done=37)
    build_run(root / "failed", status="failed", done=12)
    build_run(root / "flat", top=0.0, seed=3, tasks=64)
    for lr in (1e-4, 3e-4, 1e-3):
        for seed in (0, 1, 2, 3):
            top = {1e-4: 0.3, 3e-4: 0.6, 1e-3: 0.45}[lr] + 0.03 * seed
            build_run(root / "sweep" / f"lr={lr},seed={seed}", seed=seed, top=top, tasks=64, optimizer__lr=lr)
    build_run(root / "sweep" / "lr=0.003,seed=0", status="failed", done=30, top=0.1, optimizer__lr=3e-3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
