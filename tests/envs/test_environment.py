from dataclasses import replace

import pytest

from envs import ConfigError, Environment, Rubric, Taskset


def test_parts_of_the_wrong_kind_are_refused(sums: Environment) -> None:
    with pytest.raises(ConfigError, match=r"Environment\(tasks=…\) is a list; expected a Taskset"):
        Environment([], sums.harness, sums.rubric)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Environment\(rubric=…\) is a dict; expected a Rubric"):
        replace(sums, rubric={})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Environment\(harness='x'\); expected a harness"):
        Environment(sums.tasks, "x", Rubric({}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Environment\(timeout=0\); expected a positive number of seconds"):
        replace(sums, timeout=0)


def test_making_an_environment_builds_no_tasks(sums: Environment) -> None:
    def fail(split: str) -> list[object]:
        raise AssertionError("built")

    replace(sums, tasks=Taskset.from_function(fail))  # type: ignore[arg-type]


def test_an_expert_shows_messages_or_a_text(sums: Environment) -> None:
    task = sums.tasks[3]
    spoken = replace(sums, demonstrate=lambda task, sample: task.answer)
    assert spoken.demonstration(task) == ({"role": "assistant", "content": "4"},)
    dialogue = replace(
        sums, demonstrate=lambda task, sample: [{"role": "assistant", "content": "?"}, {"role": "user", "content": "!"}]
    )
    assert [message["role"] for message in dialogue.demonstration(task)] == ["assistant", "user"]
    with pytest.raises(ConfigError, match="environment 'sums' shows no expert"):
        sums.demonstration(task)
    silent = replace(sums, demonstrate=lambda task, sample: [{"role": "user", "content": "!"}])
    with pytest.raises(ConfigError, match=r"demonstrate\('train-3', 0\) has no assistant message"):
        silent.demonstration(task)


def test_what_is_for_evaluation_only_refuses_to_be_trained_on(sums: Environment) -> None:
    assert list(sums.training_tasks()) == list(sums.tasks.split("train"))
    reserved = replace(sums, tasks=sums.tasks.evaluation_only("train"))
    with pytest.raises(ConfigError, match=r"'sums' has no tasks to train on: its split 'train' is for evaluation only"):
        reserved.training_tasks()
    alone = replace(sums, tasks=sums.tasks.split("eval").evaluation_only("eval"))
    with pytest.raises(ConfigError, match=r"its split 'eval' is for evaluation only; use it with `rl eval`"):
        alone.training_tasks()
    with pytest.raises(ConfigError, match=r"unknown split 'train'; known: eval"):
        replace(sums, tasks=sums.tasks.split("eval")).training_tasks()
