"""The model calls tools until it answers without calling one."""

from collections.abc import Callable, Sequence
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
    sources = [given for given in tools if isinstance(given, ToolSource)]
    own = _by_name(_tool(given) for given in tools if not isinstance(given, ToolSource))

    async def harness(rollout: Rollout) -> str:
        async with AsyncExitStack() as connections:
            known = own
            if sources:
                found = [await connections.enter_async_context(source.connect()) for source in sources]
                known = _by_name([*own.values(), *(tool for tools in found for tool in tools)])
            return await hooked(rollout, hooks, lambda: _play(rollout, known, max_turns, hooks))

    return harness


async def _play(rollout: Rollout, tools: dict[str, Tool], max_turns: int, hooks: Sequence[Hooks]) -> str:
    schemas = [tool.schema for tool in tools.values()]
    for _ in range(max_turns):
        message = await rollout.complete(schemas)
        calls = message.get("tool_calls") or []
        results = await together(call_tool(tools, call["function"], rollout.state) for call in calls)
        answers: list[Message] = [
            {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": result}
            for call, result in zip(calls, results, strict=True)
        ]
        rollout.messages.extend(answers)
        if stop := await end_turn(rollout, hooks):
            return stop
        if not calls:
            return "length" if rollout.last.finish_reason == "length" else "completed"
    return "max_turns"


def _tool(given: Any) -> Tool:
    return given if isinstance(given, Tool) else make_tool(given)


def _by_name(tools: Any) -> dict[str, Tool]:
    by_name: dict[str, Tool] = {}
    for tool in tools:
        if tool.name in by_name:
            raise ConfigError(f"two tools are called '{tool.name}'; rename one")
        by_name[tool.name] = tool
    return by_name
