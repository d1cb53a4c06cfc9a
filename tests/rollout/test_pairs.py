"""Pairs out of files and runs."""

import json
from pathlib import Path

import pytest

from envs import Completion, ConfigError, Task, Trajectory, Turn
from envs.render import ByteRenderer
from rl.rollout.journal import write_rollouts
from rl.rollout.pairs import Pair, held_apart, pair_segments, read_pairs


def test_a_file_of_texts_and_messages(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    told = [{"role": "user", "content": "a?"}]
    rows = [
        {"prompt": "a?", "chosen": "b", "rejected": "c"},
        {"prompt": told, "chosen": [{"role": "assistant", "content": "b"}], "rejected": "cc"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_pairs(file, ByteRenderer())
    assert (first.id, second.id) == ("1", "2") and first.chosen.turns == second.chosen.turns
    parts = pair_segments([first, second])
    assert [part.pair for part in parts] == [1, -1, 2, -2]
    assert [sum(part.mask) for part in parts] == [2, 2, 2, 3], "a letter or two, and the end"
    file.write_text('{"prompt": "a?", "chosen": "b"}\n')
    with pytest.raises(
        ConfigError, match=r"pairs\.jsonl:1 is no pair \(KeyError: 'rejected'\); expected a JSON object"
    ):
        read_pairs(file, ByteRenderer())


def rolled(task: str, sample: int, reward: float | None) -> Trajectory:
    completion = Completion({"role": "assistant", "content": ""}, "stop", [1], [sample + 2], [-1.0], [0])
    return Trajectory(Task.ask(task, "?"), sample, [Turn((), completion, True)], reward=reward)


def test_the_best_and_the_worst_of_the_groups_of_a_run(tmp_path: Path) -> None:
    rollouts = [rolled("a", 0, 0.5), rolled("a", 1, 1.0), rolled("a", 2, 0.0), rolled("a", 3, None)]
    rollouts += [rolled("b", 0, 1.0), rolled("b", 1, 1.0)]
    write_rollouts(tmp_path / "rollouts" / "step_000001.parquet", rollouts, 1)
    (pair,) = read_pairs(tmp_path, ByteRenderer())
    assert pair.id == "rollouts/step_000001/a"
    assert [(part.tokens, part.pair) for part in pair_segments([pair])] == [([1, 3], 1), ([1, 4], -1)]
    write_rollouts(tmp_path / "rollouts" / "step_000001.parquet", rollouts[4:], 1)
    with pytest.raises(ConfigError, match="holds no pair: no group has two rollouts of different reward"):
        read_pairs(tmp_path, ByteRenderer())


def test_pairs_of_a_prompt_are_on_one_side() -> None:
    pairs = [Pair(f"{n}", rolled(f"{n % 10}", 0, 1.0), rolled(f"{n % 10}", 1, 0.0)) for n in range(20)]
    pairs = [
        pair._replace(chosen=Trajectory(Task.ask("x", f"prompt {n % 10}"), turns=pair.chosen.turns))
        for n, pair in enumerate(pairs)
    ]
    learned, apart = held_apart(pairs, 0.25, seed=3)
    assert (len(learned), len(apart)) == (16, 4), "two of ten prompts"
    assert not {p.chosen.task.prompt[0]["content"] for p in learned} & {
        p.chosen.task.prompt[0]["content"] for p in apart
    }
    assert held_apart(pairs, 0.25, seed=3) == (learned, apart) != held_apart(pairs, 0.25, seed=4)
    assert held_apart(pairs, 0.0, seed=3) == (pairs, [])
    with pytest.raises(ConfigError, match="held_out is 1; expected a share of the prompts, from 0 to below 1"):
        held_apart(pairs, 1.0, seed=3)


def test_a_reward_model_reads_the_last_segment_of_an_answer() -> None:
    split = rolled("a", 0, 1.0)
    again = Completion({"role": "assistant", "content": ""}, "stop", [7, 7], [8], [-1.0], [0])
    split.turns.append(Turn((), again, False))
    (whole, cut) = (pair_segments([Pair("a", split, rolled("a", 1, 0.0))], last=last) for last in (False, True))
    assert [part.tokens for part in whole] == [[1, 2], [7, 7, 8], [1, 3]]
    assert [(part.tokens, part.pair) for part in cut] == [([7, 7, 8], 1), ([1, 3], -1)]
