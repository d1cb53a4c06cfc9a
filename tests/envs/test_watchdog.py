import asyncio
import logging
import time

import pytest

from envs import Environment, Rollout, Rubric, ScriptedClient, Task, Taskset, evaluate, single_turn, tool_use
from envs.clients.scripted import tool_call
from envs.watchdog import Watchdog

TASKS = Taskset({"eval": [Task.ask(f"t{i}", "?", "!") for i in range(3)]})


def correct(completion: str, answer: str) -> float:
    return float(completion == answer)


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def test_a_reward_function_that_blocks_is_named_with_its_line(caplog: pytest.LogCaptureFixture) -> None:
    async def thorough(completion: str) -> float:
        await asyncio.sleep(0)
        spin(1.2)
        return 1.0

    environment = Environment(TASKS, single_turn(), Rubric({correct: 1.0, thorough: 0.0}))
    with caplog.at_level(logging.WARNING, "envs"):
        result = await evaluate(environment, ScriptedClient(lambda messages: "!"), tasks=1)
    (found,) = result.blocked
    assert found.what == "reward function 'thorough'" and found.seconds >= 0.5
    assert "test_watchdog.py:" in found.where and found.where.endswith("in spin")
    assert "reward function 'thorough' held up the event loop" in caplog.text
    assert result.interval().mean == 1.0  # it is told, not punished


async def test_a_harness_that_blocks_is_named() -> None:
    async def harness(rollout: Rollout) -> str:
        await rollout.complete()
        spin(0.3)
        return "completed"

    environment = Environment(TASKS, harness, Rubric({correct: 1.0}))
    with Watchdog(seconds=0.1, report=lambda found: None) as watchdog:
        await evaluate(environment, ScriptedClient(lambda messages: "!"), tasks=1)
    assert [found.what for found in watchdog.blocked] == ["harness"]


async def test_a_tool_that_blocks_is_named() -> None:
    async def search(query: str) -> str:
        """Search.

        Args:
            query: words.
        """
        spin(0.3)
        return query

    replies = [tool_call("search", '{"query": "x"}'), "!"]
    environment = Environment(TASKS, tool_use([search], max_turns=2), Rubric({correct: 1.0}))
    with Watchdog(seconds=0.1, report=lambda found: None) as watchdog:
        await evaluate(environment, ScriptedClient(replies), tasks=1)
    assert [found.what for found in watchdog.blocked] == ["tool 'search'"]


async def test_who_waits_and_who_computes_in_a_thread_or_elsewhere_is_not_blamed() -> None:
    async def patient(completion: str) -> float:
        await asyncio.sleep(0.8)
        return 1.0

    async def threaded(completion: str) -> float:
        await asyncio.to_thread(time.sleep, 0.8)
        return 1.0

    def quick(completion: str) -> float:
        spin(0.01)
        return 1.0

    environment = Environment(TASKS, single_turn(), Rubric({patient: 1.0, threaded: 1.0, quick: 1.0}))
    with Watchdog(seconds=0.4, report=lambda found: None) as watchdog:
        await evaluate(environment, ScriptedClient(lambda messages: "!"))
        spin(0.8)  # the loop is held up, and by no environment
    assert watchdog.blocked == ()
