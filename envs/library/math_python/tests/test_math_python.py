"""Problems, answers and Python of `math_python`."""

import contextlib
import io
from typing import Any

import pytest

from envs import ConfigError, Environment, ScriptedClient, Trajectory, load_environment, run_task
from envs.errors import MissingPackageError
from envs.types import Task

try:
    ENVIRONMENT = load_environment("math_python", train_tasks=60, eval_tasks=20)
except MissingPackageError as error:
    pytest.skip(f"NOT TESTED: {error}", allow_module_level=True)


async def say(environment: Environment, task: Task, *words: Any) -> Trajectory:
    try:
        record = await run_task(environment, task, ScriptedClient(list(words)))
    except ConfigError as error:
        if "bubblewrap" not in str(error):
            raise
        pytest.skip(f"NOT TESTED: {error}")
    assert record.failure is None, record.failure
    return record


def test_every_kind_is_asked_and_its_code_finds_its_answer() -> None:
    kinds = set()
    for task in ENVIRONMENT.tasks:
        kinds.add(task.id.partition("-")[0])
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(task.info["code"], {})
        assert printed.getvalue().strip() == task.answer, task
    assert len(kinds) == 10


def test_no_question_is_in_two_splits_whatever_the_seed() -> None:
    train, held_out = ({str(t.prompt[-1]["content"]) for t in ENVIRONMENT.tasks.split(s)} for s in ("train", "eval"))
    assert len(train) == 60 and len(held_out) == 20 and train.isdisjoint(held_out)
    small = {"gcd": {"min_value": 1, "max_value": 9}}
    one, other = (load_environment("math_python", kinds=["gcd"], options=small, seed=seed).tasks for seed in (0, 1))
    train, held_out = ({str(t.prompt[-1]["content"]) for t in t.split(s)} for t, s in ((one, "train"), (other, "eval")))
    assert 40 < len(train) < 72 and 9 < len(held_out) < 36 and train.isdisjoint(held_out)


@pytest.mark.parametrize(
    ("answer", "said", "reward"),
    [
        ("1200", "1200", 1.0),
        ("1200", "It is 1,200.", 1.0),
        ("1200", "1200.00", 1.0),
        ("1200", "3 * 400 = 1200", 0.0),
        ("1200", r"3 * 400 = \boxed{1200}", 1.0),
        ("1200", "1201", 0.0),
        ("1200", "12,00", 0.0),
        ("-7", "-7", 1.0),
        ("-7", "7", 0.0),
        ("3/4", "0.75", 1.0),
        ("3/4", "6/8", 1.0),
        ("3/4", "3/4 or 1/4", 0.0),
        ("12345678901234567890", "12345678901234567891", 0.0),
        ("1", "1/0", 0.0),
        ("1", "9" * 5000, 0.0),
        ("1", "", 0.0),
    ],
)
async def test_the_number_is_right_exactly_or_not_at_all(answer: str, said: str, reward: float) -> None:
    assert (await say(ENVIRONMENT, Task.ask("a", "?", answer), said)).reward == reward


async def test_python_is_called_and_counted() -> None:
    task = next(task for task in ENVIRONMENT.tasks if task.id.startswith("dice"))
    record = await say(ENVIRONMENT, task, *(m for m in ENVIRONMENT.demonstration(task) if m["role"] == "assistant"))
    assert (record.reward, record.metrics) == (1.0, {"calls": 1.0})
    assert [m["content"] for m in record.messages if m["role"] == "tool"] == [f"{task.answer}\n"]


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown kind of problem 'product'; did you mean 'products'"):
        load_environment("math_python", kinds=["product"])
    with pytest.raises(ConfigError, match="kinds is empty"):
        load_environment("math_python", kinds=[])
    with pytest.raises(ConfigError, match=r"TypeError.*unexpected keyword argument 'digits'"):
        len(load_environment("math_python", options={"products": {"digits": 3}}).tasks)
