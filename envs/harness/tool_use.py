"""The model calls tools until it answers without calling one."""

from collections.abc import Callable, Sequence
from typing import Any

from envs.concurrency import together
from envs.environment import Harness
from envs.errors import ConfigError
from envs.rollout import Rollout
from envs.tools import Tool, call_tool, make_tool
from envs.types import Message


def tool_use(tools: Sequence[Tool | Callable[..., Any]], *, max_turns: int) -> Harness:
    """A harness that runs the tools the model calls, those of one turn at the same time, and shows it the results.

    It stops with "completed" when the model answers without a call ("length" if that answer was cut off), or with
    "max_turns"; the calls of the last turn are still run.

    Args:
        tools: typed, documented functions (see `make_tool`), or `Tool` values where limits should differ.
        max_turns: the most completions.

    Raises:
        ConfigError: a function that cannot become a tool, or two tools of one name.
    """
    if max_turns < 1:
        raise ConfigError(f"tool_use(max_turns={max_turns}); expected at least 1")
    by_name: dict[str, Tool] = {}
    for given in tools:
        tool = given if isinstance(given, Tool) else make_tool(given)
        if tool.name in by_name:
            raise ConfigError(f"two tools are called '{tool.name}'; rename one")
        by_name[tool.name] = tool
    schemas = [tool.schema for tool in by_name.values()]

    async def harness(rollout: Rollout) -> str:
        for _ in range(max_turns):
            message = await rollout.complete(schemas)
            calls = message.get("tool_calls")
            if not calls:
                return "length" if rollout.last.finish_reason == "length" else "completed"
            results = await together(call_tool(by_name, call["function"], rollout.state) for call in calls)
            answers: list[Message] = [
                {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": result}
                for call, result in zip(calls, results, strict=True)
            ]
            rollout.messages.extend(answers)
        return "max_turns"

    return harness
