import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import ConfigError, Task
from rl.rollout.schedule import Schedule

TASKS = [Task.ask(f"t{i}", "?") for i in range(10)]


def ids(schedule: Schedule, step: int) -> list[str]:
    return [task.id for task in schedule.tasks(step)]


@given(st.integers(1, 10), st.integers(0, 1000))
def test_an_epoch_holds_each_task_once(prompts: int, seed: int) -> None:
    schedule = Schedule(TASKS, prompts, seed)
    steps = 10 // prompts
    for epoch in range(3):
        drawn = [name for step in range(steps) for name in ids(schedule, epoch * steps + step)]
        assert len(set(drawn)) == len(drawn) == steps * prompts
        assert {schedule.epoch(epoch * steps + step) for step in range(steps)} == {epoch}


def test_a_step_is_a_function_of_seed_and_number_alone() -> None:
    forwards = [ids(Schedule(TASKS, 3, 1), step) for step in range(9)]
    schedule = Schedule(TASKS, 3, 1)
    assert [ids(schedule, step) for step in reversed(range(9))] == forwards[::-1]
    assert forwards[0] == ["t5", "t1", "t2"]
    assert sorted(forwards[:3]) != sorted(forwards[3:6]), "every epoch has an order of its own"
    assert [ids(Schedule(TASKS, 3, 2), step) for step in range(9)] != forwards


@pytest.mark.parametrize("prompts", [0, 11])
def test_a_step_of_more_tasks_than_there_are_is_refused(prompts: int) -> None:
    with pytest.raises(ConfigError, match=f"a step takes {prompts} different tasks, but the split has 10"):
        Schedule(TASKS, prompts, 0)
