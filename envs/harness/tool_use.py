"""The model calls tools until it answers without calling one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Protocol, runtime_checkable

from envs.concurrency import together
from envs.environment import Harness
from envs.errors import ConfigError
from envs.harness.hooks import Hooks, end_turn, hooked
from envs.rollout import Rollout
from envs.tools import Tool, call_tool, make_tool
from envs.types import Message


@runtime_checkable
class ToolSource(Protocol):
    """Something that has tools for the length of a rollout, an MCP server for example."""

    def connect(self) -> AbstractAsyncContextManager[Sequence[Tool]]:
        """The tools, usable within the context.

        Raises:
            InfrastructureError: on entry, if it cannot be reached.
        """
        ...


def tool_use(
    tools: Sequence[Tool | ToolSource | Callable[..., Any]], *, max_turns: int, hooks: Sequence[Hooks] = ()
) -> Harness:
    """A harness that runs the tools the model calls, those of one turn at the same time, and shows it the results.

    It stops with "completed" when the model answers without a call ("length" if that answer was cut off), with the word
    of a stop condition, or with "max_turns"; the calls of the last turn are still run.

    Args:
        tools: typed, documented functions (see `make_tool`), `Tool` values where limits should differ, and sources
            of tools such as `MCPTools`.
        max_turns: the most completions.
        hooks: what happens before, between and after the turns.

    Raises:
        ConfigError: a function that cannot become a tool, or two tools of one name (within a rollout, if one of them
            comes from a source).
    """
    if max_turns < 1:
        raise ConfigError(f"tool_use(max_turns={max_turns}); expected at least 1")
    given = [tool if isinstance(tool, Tool | ToolSource) else make_tool(tool) for tool in tools]
    _by_name(tool for tool in given if isinstance(tool, Tool))

    async def harness(rollout: Rollout) -> str:
        async with AsyncExitStack() as connections:
            known = await open_tools(given, connections)
            return await hooked(rollout, hooks, lambda: _play(rollout, known, max_turns, hooks))

    return harness


async def _play(rollout: Rollout, tools: dict[str, Tool], max_turns: int, hooks: Sequence[Hooks]) -> str:
    schemas = [tool.schema for tool in tools.values()]
    for _ in range(max_turns):
        message = await rollout.complete(schemas)
        await answer_calls(rollout, message, tools)
        if stop := await end_turn(rollout, hooks):
            return stop
        if not message.get("tool_calls"):
            return "length" if rollout.last.finish_reason == "length" else "completed"
    return "max_turns"


async def open_tools(
    tools: Sequence[Tool | ToolSource | Callable[..., Any]], connections: AsyncExitStack
) -> dict[str, Tool]:
    """All tools by name; sources are connected to until `connections` is closed.

    Raises:
        ConfigError: a function that cannot become a tool, or two tools of one name.
        InfrastructureError: a source cannot be reached.
    """
    found: list[Tool] = []
    for tool in tools:
        if isinstance(tool, ToolSource):
            found += await connections.enter_async_context(tool.connect())
        else:
            found.append(tool if isinstance(tool, Tool) else make_tool(tool))
    return _by_name(found)


async def answer_calls(rollout: Rollout, message: Message, tools: Mapping[str, Tool]) -> None:
    """Runs the calls of a message at the same time and appends their results in order."""
    calls = message.get("tool_calls") or []
    results = await together(call_tool(tools, call["function"], rollout.state) for call in calls)
    answers: list[Message] = [
        {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": result}
        for call, result in zip(calls, results, strict=True)
    ]
    rollout.messages.extend(answers)


def _by_name(tools: Iterable[Tool]) -> dict[str, Tool]:
    by_name: dict[str, Tool] = {}
    for tool in tools:
        if tool.name in by_name:
            raise ConfigError(f"two tools are called '{tool.name}'; rename one")
        by_name[tool.name] = tool
    return by_name
