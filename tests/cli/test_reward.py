"""A reward model from pairs to a reward function."""

import asyncio
import json
import math
from pathlib import Path

import pytest

from envs import Completion, Rubric, Task, Trajectory, Turn
from rl.cli.main import main
from rl.cli.reward import load_reward_model

SMALL = ["env=reverse_text", "model.layers=1", "model.width=16", "model.heads=1", "model.kv_heads=1", "model.ffn=16"]
SMALL += ["model.context=32", "pack.row_length=32", "pack.rows_per_microbatch=8", "batch=8", "optimizer.lr=3e-2"]


def answered(prompt: str, answer: str) -> Trajectory:
    """As another model, of which no tokens are known, answered."""
    task = Task.ask("a", prompt)
    return Trajectory(task, 0, [Turn(task.prompt, Completion({"role": "assistant", "content": answer}, "stop"), True)])


def test_which_answers_are_better_is_learned_and_becomes_a_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = [a + b for a in "abcdef" for b in "uvwxyz"]
    pairs = [{"prompt": p, "chosen": p[0] + "!", "rejected": p[1] + "?"} for p in prompts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    learn = ["sft", *SMALL, "preference=bradley_terry", "pairs=pairs.jsonl", "run_dir=judge", "held_out=0.25"]
    assert main([*learn, "steps=30"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "judge" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(math.log(2), rel=1e-6), "a head of zeros scores all alike"
    assert rows[-1]["loss"] < 0.1 and rows[0]["critic_grad_norm"] > 0
    assert not {"entropy", "explained_variance"} & rows[0].keys()
    found = json.loads((tmp_path / "judge" / "summary.json").read_text())["held_out"]
    assert found["pairs"] == 9 and found["accuracy"] == 1.0 and found["loss"] < 0.1 < found["margin"]
    assert found["accuracy_ci95"][1] == 1.0 and "held out: accuracy 1.000 (0.701 to 1.000) of 9 pairs" in (
        capsys.readouterr().out
    )

    rubric = Rubric({load_reward_model("judge"): 2.0})

    async def rewarded() -> list[float]:
        each = [answered("dx", "d!"), answered("dx", "x?")]
        for trajectory in each:
            await rubric.score(trajectory, None)  # type: ignore[arg-type]
        return [trajectory.reward or 0.0 for trajectory in each]

    better, worse = asyncio.run(rewarded())
    assert better > worse + 2.0
