"""Training rollouts on disk come back exactly, whether a step was sealed or cut short."""

import pyarrow.parquet as pq

from envs.types import Completion, Failure, Task, Trajectory, Turn
from rl.rollout.journal import StepJournal, read_rollouts, write_rollouts


def rollout(sample: int, reward: float | None = 0.5, **changes) -> Trajectory:
    task = Task.ask("t-1", "Wie geht's? ☕", {"gold": [1, 2]}, level=3)
    answer = Completion(
        {"role": "assistant", "content": "gut\u2028"},
        "stop",
        prompt_ids=[258, 87, 256, 259],
        completion_ids=[103, 256],
        logprobs=[-0.10000000149011612, -2.384185791015625e-07],
        versions=[7, 8],
        usage={"prompt_tokens": 4, "completion_tokens": 2},
    )
    tail = ({"role": "user", "content": "bye"},)
    return Trajectory(
        task,
        sample,
        [Turn(task.prompt, answer, True, 0.25)],
        tail,
        "completed",
        reward,
        {"a": 0.5},
        {"b": 1.0},
        **changes,
    )


def test_parquet_round_trip_keeps_every_bit(tmp_path):
    failed = rollout(1, None, failure=Failure("infrastructure", "TimeoutError", "no answer"))
    failed.rewards, failed.metrics = {}, {}
    by_turn = rollout(-1, turn_rewards=[0.1])
    write_rollouts(tmp_path / "x.parquet", [rollout(0), failed, by_turn], step=3)
    assert read_rollouts(tmp_path / "x.parquet") == [rollout(0), failed, by_turn]
    table = pq.read_table(tmp_path / "x.parquet", columns=["step", "task_id", "reward", "rewards/a", "metrics/b"])
    assert table.to_pylist()[0] == {"step": 3, "task_id": "t-1", "reward": 0.5, "rewards/a": 0.5, "metrics/b": 1.0}


def test_a_step_cut_short_finds_its_finished_rollouts_and_drops_the_torn_one(tmp_path):
    journal = StepJournal(tmp_path, 4)
    assert journal.done() == []
    journal.append(rollout(0))
    journal.append(rollout(1, None, failure=Failure("infrastructure", "TimeoutError", "no answer")))
    journal.close()
    with (tmp_path / "step_000004.jsonl").open("a") as file:
        file.write('{"keys": {}, "traj')
    assert StepJournal(tmp_path, 4).done() == [rollout(0)]
    assert StepJournal(tmp_path, 5).done() == []


def test_a_sealed_step_is_one_table_and_nothing_else(tmp_path):
    journal = StepJournal(tmp_path, 4)
    journal.append(rollout(0))
    journal.seal([[rollout(0), rollout(1)]])
    assert [p.name for p in tmp_path.iterdir()] == ["step_000004.parquet"]
    assert StepJournal(tmp_path, 4).done() == [rollout(0), rollout(1)]
