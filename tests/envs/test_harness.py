import asyncio

import pytest

from envs import (
    Completion,
    ConfigError,
    Environment,
    Harness,
    InfrastructureError,
    Message,
    Rollout,
    Rubric,
    ScriptedClient,
    Task,
    Taskset,
    Trajectory,
    make_tool,
    multi_turn,
    run_task,
    single_turn,
    tool_use,
)
from envs.clients.scripted import tool_call

TASK = Task.ask("a", "Guess a number", "7")


async def drive(harness: Harness, *replies: str | Message | Completion, timeout: float | None = None) -> Trajectory:
    environment = Environment(Taskset({"train": [TASK]}), harness, Rubric({}), timeout=timeout)
    return await run_task(environment, TASK, ScriptedClient(replies), retries=0)


def said(record: Trajectory) -> list[str | None]:
    return [message["content"] for message in record.messages]


async def test_single_turn_asks_once() -> None:
    record = await drive(single_turn(), "7")
    assert (record.stop, said(record)) == ("completed", ["Guess a number", "7"])


async def test_single_turn_says_when_the_answer_was_cut_off() -> None:
    cut = Completion({"role": "assistant", "content": "The number is"}, "length")
    assert (await drive(single_turn(), cut)).stop == "length"


def respond(rollout: Rollout) -> str | None:
    rollout.state.guesses += 1
    return None if rollout.trajectory.completion == rollout.task.answer else "wrong"


def setup(rollout: Rollout) -> None:
    rollout.state.guesses = 0


async def test_multi_turn_goes_on_until_the_environment_is_done() -> None:
    record = await drive(multi_turn(respond, max_turns=5, setup=setup), "3", "7")
    assert (record.stop, said(record)) == ("completed", ["Guess a number", "3", "wrong", "7"])


async def test_multi_turn_takes_in_the_last_move() -> None:
    guesses = []

    async def watch(rollout: Rollout) -> list[Message]:
        await asyncio.sleep(0)
        guesses.append(rollout.messages[-1]["content"])
        return [{"role": "user", "content": "wrong"}]

    record = await drive(multi_turn(watch, max_turns=2), "1", "2")
    assert (record.stop, guesses) == ("max_turns", ["1", "2"])
    assert record.tail == ({"role": "user", "content": "wrong"},)


async def test_an_async_setup_may_change_the_prompt() -> None:
    async def change(rollout: Rollout) -> None:
        await asyncio.sleep(0)
        rollout.messages.insert(0, {"role": "system", "content": "Be brief."})

    record = await drive(multi_turn(lambda rollout: None, max_turns=1, setup=change), "7")
    assert said(record) == ["Be brief.", "Guess a number", "7"]


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


async def test_tools_run_until_the_model_answers() -> None:
    record = await drive(tool_use([add], max_turns=3), tool_call("add", '{"a": 3, "b": 4}', "c1"), "7")
    assert record.stop == "completed"
    assert record.messages[2] == {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "7"}
    assert record.completion == "7"


async def test_calls_of_one_turn_run_at_the_same_time_and_answer_in_order() -> None:
    both = asyncio.Barrier(2)

    async def wait(name: str) -> str:
        """Waits for the other."""
        await both.wait()
        return name

    calls = [*_calls(tool_call("wait", '{"name": "x"}', "c1")), *_calls(tool_call("wait", '{"name": "y"}', "c2"))]
    record = await asyncio.wait_for(
        drive(tool_use([wait], max_turns=1), {"role": "assistant", "content": None, "tool_calls": calls}), 5
    )
    assert record.stop == "max_turns"
    assert [(m["tool_call_id"], m["content"]) for m in record.tail] == [("c1", "x"), ("c2", "y")]


def _calls(message: Message) -> list:  # type: ignore[type-arg]
    return message["tool_calls"]


async def test_the_model_is_told_what_it_did_wrong() -> None:
    record = await drive(
        tool_use([add], max_turns=3), tool_call("ad", "{}"), tool_call("add", '{"a": "x", "b": 1}'), "I give up"
    )
    assert record.messages[2]["content"] == "Error: there is no tool 'ad'. The tools are: add."
    assert record.messages[4]["content"] == 'Error: add: a is "x", expected int.'
    assert record.failure is None


async def test_a_tool_whose_infrastructure_fails_fails_the_rollout() -> None:
    async def search(query: str) -> str:
        """Searches."""
        raise InfrastructureError("the index is down")

    record = await drive(tool_use([search], max_turns=3), tool_call("search", '{"query": "x"}'))
    assert record.failure is not None
    assert (record.failure.kind, record.failure.message) == ("infrastructure", "the index is down")


async def test_an_answer_that_was_cut_off_before_any_call() -> None:
    cut = Completion({"role": "assistant", "content": "Let me"}, "length")
    assert (await drive(tool_use([add], max_turns=3), cut)).stop == "length"


def test_what_cannot_work_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="two tools are called 'add'"):
        tool_use([add, make_tool(add)], max_turns=1)
    with pytest.raises(ConfigError, match=r"tool_use\(max_turns=0\); expected at least 1"):
        tool_use([add], max_turns=0)
    with pytest.raises(ConfigError, match=r"multi_turn\(max_turns=0\); expected at least 1"):
        multi_turn(respond, max_turns=0)
