import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from envs import (
    Completion,
    ConfigError,
    Environment,
    Harness,
    Hidden,
    Hooks,
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
    record = await drive(multi_turn(respond, max_turns=5, hooks=[Hooks(on_setup=setup)]), "3", "7")
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

    record = await drive(multi_turn(lambda rollout: None, max_turns=1, hooks=[Hooks(on_setup=change)]), "7")
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


async def test_hooks_run_in_order_and_clean_up_in_reverse_even_when_time_runs_out() -> None:
    told: list[str] = []

    def tell(name: str) -> Hooks:
        def hook(what: str) -> Callable[[Rollout], None]:
            return lambda rollout: told.append(f"{name} {what}")

        return Hooks(hook("setup"), hook("turn"), hook("stop"), hook("cleanup"))

    async def answer(rollout: Rollout) -> str:
        await asyncio.sleep(0 if len(rollout.trajectory.turns) == 1 else 60)
        return "go on"

    record = await drive(multi_turn(answer, max_turns=3, hooks=[tell("a"), tell("b")]), "1", "2", timeout=1.0)
    assert record.stop == "timeout"
    assert told == ["a setup", "b setup", "a turn", "b turn", "a stop", "b stop", "b cleanup", "a cleanup"]


async def test_a_setup_that_fails_half_way_is_cleaned_up_and_fails_the_rollout() -> None:
    told: list[str] = []

    def open_half(rollout: Rollout) -> None:
        told.append("opened")
        raise InfrastructureError("no more room")

    hooks = Hooks(
        open_half, on_stop=lambda rollout: told.append("stop"), on_cleanup=lambda rollout: told.append("closed")
    )
    record = await drive(multi_turn(respond, max_turns=1, hooks=[hooks]), "1")
    assert told == ["opened", "closed"]
    assert record.failure is not None and record.failure.message == "no more room"


async def test_a_stop_condition_ends_the_rollout_with_its_word() -> None:
    async def told(rollout: Rollout) -> bool:
        return rollout.messages[-1]["content"] == "7"

    hooks = [Hooks(stop={"never": lambda rollout: False, "found": told})]
    record = await drive(tool_use([add], max_turns=3, hooks=hooks), tool_call("add", '{"a": 3, "b": 4}'))
    assert record.stop == "found" and record.tail[0]["content"] == "7"


@dataclass
class Shop:
    stock: dict[str, int]
    sold: int = 0


async def test_hidden_arguments_come_from_the_typed_state() -> None:
    def buy(item: str, stock: Hidden[dict[str, int]], state: Shop) -> int:
        """Buys one of an item.

        Args:
            item: its name.
        """
        stock[item] -= 1
        state.sold += 1
        return stock[item]

    assert list(make_tool(buy).parameters["properties"]) == ["item"]
    shops: list[Shop] = []

    def begin(rollout: Rollout) -> None:
        shops.append(Shop({"tea": 3}))
        rollout.state = shops[0]

    harness = tool_use([buy], max_turns=4, hooks=[Hooks(on_setup=begin)])
    buys, steals = tool_call("buy", '{"item": "tea"}'), tool_call("buy", '{"item": "tea", "stock": {}}')
    record = await drive(harness, buys, buys, steals, "done")
    assert [m["content"] for m in record.messages if m["role"] == "tool"] == [
        "2", "1", "Error: buy has no argument 'stock'; it takes item.",
    ]  # fmt: skip
    assert shops == [Shop({"tea": 1}, sold=2)]


async def test_a_state_without_what_a_tool_needs_is_the_environments_bug() -> None:
    def look(shop: Hidden[Shop]) -> int:
        """Looks."""
        return shop.sold

    record = await drive(tool_use([look], max_turns=1), tool_call("look", "{}"))
    assert record.failure is not None and (record.failure.kind, record.failure.error) == ("harness", "AttributeError")
