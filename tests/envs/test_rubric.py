import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from envs import Completion, ConfigError, Failure, InfrastructureError, Rubric, Task, Trajectory, Turn, scores

TASK = Task.ask("a", "2+2", "4", level=3)


def trajectory(answer: str = "4", sample: int = 0) -> Trajectory:
    turn = Turn(TASK.prompt, Completion({"role": "assistant", "content": answer}, "stop"), True)
    return Trajectory(TASK, sample, [turn], stop="completed")


async def scored(rubric: Rubric, answer: str = "4", **state: Any) -> Trajectory:
    record = trajectory(answer)
    await rubric.score(record, SimpleNamespace(**state))
    return record


def correct(completion: str, answer: str) -> float:
    return float(completion == answer)


async def test_weights_add_up_and_weight_zero_is_a_metric() -> None:
    async def brief(messages: list[Any]) -> float:
        await asyncio.sleep(0)
        return 1 / len(messages)

    def level(info: dict[str, int]) -> int:
        return info["level"]

    rubric = Rubric({correct: 2.0, brief: -0.5, level: 0})
    record = await scored(rubric)
    assert (record.reward, record.rewards, record.metrics) == (1.75, {"correct": 1.0, "brief": 0.5}, {"level": 3.0})
    assert dict(rubric.weights) == {"correct": 2.0, "brief": -0.5, "level": 0.0}


async def test_a_list_says_which_turn_earned_what() -> None:
    def progress(trajectory: Trajectory) -> list[float]:
        return [0.5, 0.25]

    def watched(trajectory: Trajectory) -> list[float]:
        return [1.0, 1.0]

    rubric = Rubric({progress: 2.0, correct: 1.0, watched: 0.0})
    record = trajectory()
    record.turns *= 2
    await rubric.score(record, SimpleNamespace())
    assert (record.reward, record.turn_rewards) == (2.5, [1.0, 0.5])
    assert (record.rewards, record.metrics) == ({"progress": 0.75, "correct": 1.0}, {"watched": 2.0})
    assert Trajectory.from_json(record.to_json()) == record
    short = await scored(rubric)
    assert (
        short.failure is not None and "one per turn, of which there were 1; found [0.5, 0.25]" in short.failure.message
    )
    assert (await scored(Rubric({correct: 1.0}))).turn_rewards == []


async def test_everything_a_function_may_ask_for_arrives() -> None:
    seen: dict[str, Any] = {}

    def watch(task, prompt, answer, info, completion, messages, trajectory, state):  # type: ignore[no-untyped-def]
        seen.update(locals())
        return 0.0

    record = await scored(Rubric({watch: 1.0}), "5", score=7)
    assert seen.pop("trajectory") is record
    assert seen.pop("state").score == 7
    assert {name: value for name, value in seen.items() if name != "seen"} == {
        "task": TASK,
        "prompt": ({"role": "user", "content": "2+2"},),
        "answer": "4",
        "info": {"level": 3},
        "completion": "5",
        "messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "5"}],
    }


async def test_judges_of_one_rollout_wait_at_the_same_time() -> None:
    both = asyncio.Barrier(2)

    async def first(completion: str) -> float:
        await both.wait()
        return 1.0

    async def second(completion: str) -> float:
        await both.wait()
        return 2.0

    record = await asyncio.wait_for(scored(Rubric({first: 1.0, second: 1.0})), 30)
    assert record.reward == 3.0


@pytest.mark.parametrize("value", [True, 1, 1.0, np.float32(1), np.int64(1), np.True_])
async def test_any_kind_of_number_is_a_reward(value: Any) -> None:
    def given() -> Any:
        return value

    record = await scored(Rubric({given: 1.0}))
    assert record.reward == 1.0
    assert type(record.rewards["given"]) is float


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), "ValueError: expected a finite number, found nan"),
        (float("-inf"), "ValueError: expected a finite number, found -inf"),
        ("1.0", "TypeError: expected a finite number, found '1.0' (str)"),
        (None, "TypeError: expected a finite number, found None (NoneType)"),
    ],
)
async def test_anything_else_is_an_error_that_names_the_function(value: Any, error: str) -> None:
    def faulty() -> Any:
        return value

    record = await scored(Rubric({correct: 1.0, faulty: 0.0}))
    assert record.failure is not None
    assert (record.failure.kind, record.failure.where) == ("reward", "faulty")
    assert f"{record.failure.error}: {record.failure.message}" == error
    assert record.reward is None


async def test_a_function_that_raises_is_a_failure_with_its_traceback() -> None:
    def broken(completion: str) -> float:
        return 1 / 0

    record = await scored(Rubric({broken: 1.0, correct: 1.0}))
    failure = record.failure
    assert failure is not None
    assert (failure.kind, failure.error, failure.message) == ("reward", "ZeroDivisionError", "division by zero")
    assert "return 1 / 0" in failure.traceback
    assert record.reward is None


@pytest.mark.parametrize("error", [InfrastructureError("the judge is down"), ConnectionError("x"), TimeoutError("y")])
async def test_a_judge_that_is_down_is_asked_again_and_is_never_a_zero(error: Exception) -> None:
    asked = 0

    async def judge(completion: str) -> float:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise error
        return 0.25

    record = trajectory()
    await Rubric({judge: 1.0}).score(record, SimpleNamespace(), retries=2)
    assert (record.reward, asked) == (0.25, 3)

    asked = 0
    record = trajectory()
    await Rubric({judge: 1.0}).score(record, SimpleNamespace(), retries=1)
    assert record.failure == Failure("infrastructure", type(error).__name__, str(error), "judge")
    assert record.reward is None


async def test_group_functions_compare_the_rollouts_that_did_not_fail() -> None:
    def rank(trajectories: list[Trajectory], states: list[SimpleNamespace], answer: str) -> list[float]:
        assert answer == "4"
        return [t.rewards["correct"] * 10 + s.bonus for t, s in zip(trajectories, states, strict=True)]

    rubric = Rubric({correct: 1.0, rank: 0.5})
    records = [trajectory("4", 0), trajectory("5", 1), trajectory("4", 2)]
    records[1].failure = Failure("infrastructure", "X", "gone")
    states = [SimpleNamespace(bonus=b) for b in (1, 2, 3)]
    for record, state in zip(records, states, strict=True):
        await rubric.score(record, state)
    assert [record.reward for record in records] == [None, None, None], "the group's verdict is still to come"
    await rubric.score_group(records, states)
    assert [record.reward for record in records] == [6.5, None, 7.5]
    assert records[1].rewards == {}


async def test_a_group_function_returns_one_number_per_trajectory() -> None:
    def lazy(trajectories: list[Trajectory]) -> list[float]:
        return [1.0]

    rubric, records = Rubric({lazy: 1.0}), [trajectory("4", 0), trajectory("5", 1)]
    await rubric.score_group(records, [SimpleNamespace(), SimpleNamespace()])
    for record in records:
        assert record.failure is not None
        assert record.failure.where == "lazy"
        assert record.failure.message == "expected 2 numbers, one per trajectory, found [1.0]"


def test_signatures_are_checked_before_anything_runs() -> None:
    def typo(anwser: str) -> float:
        return 0.0

    def mixed(trajectories: list[Trajectory], completion: str) -> list[float]:
        return []

    def everything(*args: Any) -> float:
        return 0.0

    with pytest.raises(
        ConfigError, match=r"unknown reward function argument 'anwser'; did you mean 'answer'.*'typo' asks"
    ):
        Rubric({typo: 1.0})
    with pytest.raises(ConfigError, match=r"'completion'.*'mixed' asks for it; a function with 'trajectories' can"):
        Rubric({mixed: 1.0})
    with pytest.raises(ConfigError, match=r"'everything': arguments are given by name; found '\*args"):
        Rubric({everything: 1.0})
    with pytest.raises(ConfigError, match="two reward functions are called '<lambda>'"):
        Rubric({lambda task: 1.0: 1.0, lambda answer: 1.0: 1.0})
    for weight in (float("nan"), "1", True):
        with pytest.raises(
            ConfigError, match=r"the weight of reward function 'correct' is .*; expected a finite number"
        ):
            Rubric({correct: weight})  # type: ignore[dict-item]


async def test_weights_can_be_changed_by_name() -> None:
    def brief(completion: str) -> float:
        return 0.5

    rubric = Rubric({correct: 1.0, brief: 0.0})
    record = await scored(rubric.reweight({"brief": 2.0, "correct": 0.0}))
    assert (record.reward, record.rewards, record.metrics) == (1.0, {"brief": 0.5}, {"correct": 1.0})
    assert dict(rubric.weights) == {"correct": 1.0, "brief": 0.0}
    with pytest.raises(ConfigError, match="unknown reward function 'corect'; did you mean 'correct'"):
        rubric.reweight({"corect": 1.0})


async def test_a_function_returns_several_named_scores() -> None:
    @scores(accuracy=1.0, style=0.5, words=0.0)
    def quality(completion: str) -> dict[str, float]:
        return {"accuracy": 1.0, "style": 0.5, "words": float(len(completion.split()))}

    record = await scored(Rubric({quality: 2.0}), "four is it")
    assert (record.reward, record.rewards, record.metrics) == (2.5, {"accuracy": 1.0, "style": 0.5}, {"words": 3.0})
    again = Rubric({quality: 2.0}).reweight({"words": 1.0, "accuracy": 0.0})
    assert dict(again.weights) == {"accuracy": 0.0, "style": 1.0, "words": 1.0}
    assert (await scored(again, "four is it")).reward == 3.5
    chosen = Rubric({quality: {"accuracy": 1.0, "style": 0.0, "words": 0.0}})
    assert (await scored(chosen)).reward == 1.0


async def test_a_group_function_returns_several_scores_for_each() -> None:
    def ranks(trajectories: list[Trajectory]) -> dict[str, list[float]]:
        return {"first": [1.0, 0.0], "last": [0.0, 1.0]}

    rubric = Rubric({ranks: {"first": 1.0, "last": -1.0}})
    records = [trajectory(sample=i) for i in range(2)]
    for record in records:
        await rubric.score(record, SimpleNamespace())
    await rubric.score_group(records, [SimpleNamespace()] * 2)
    assert [record.reward for record in records] == [1.0, -1.0]


@pytest.mark.parametrize("returned", [{"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, 1.0, {"a": 1.0, "b": "x"}])
async def test_scores_that_are_missing_or_too_many_are_an_error(returned: Any) -> None:
    def quality() -> Any:
        return returned

    record = await scored(Rubric({quality: {"a": 1.0, "b": 0.0}}))
    assert record.reward is None and record.failure is not None
    assert (record.failure.kind, record.failure.where) == ("reward", "quality")


def test_scores_are_named_once_and_weights_fit_them() -> None:
    @scores(correct=1.0)
    def other() -> dict[str, float]:
        return {"correct": 1.0}

    with pytest.raises(ConfigError, match="two reward functions are called 'correct'; rename one"):
        Rubric({correct: 1.0, other: 1.0})
    with pytest.raises(ConfigError, match="unknown score of 'other' 'corect'; did you mean 'correct'"):
        Rubric({other: {"corect": 1.0}})


async def test_a_rubric_is_extended() -> None:
    def extra() -> float:
        return 3.0

    rubric = Rubric({correct: 2.0}).extend({extra: 0.0})
    assert dict(rubric.weights) == {"correct": 2.0, "extra": 0.0}
    assert (await scored(rubric)).metrics == {"extra": 3.0}
