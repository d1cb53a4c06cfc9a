"""The model talks to a user who is a model as well."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from envs.clients.base import Client
from envs.environment import Harness
from envs.errors import ConfigError
from envs.harness.hooks import Hooks, end_turn, hooked
from envs.harness.tool_use import ToolSource, answer_calls, open_tools
from envs.rollout import Rollout
from envs.tools import Tool
from envs.types import Task

RULES = """\
You are a user who talks to an assistant. Stay in your role, say one thing at a time, and reveal what you know only when
it is asked for. When your wish is fulfilled, or cannot be, answer with {word} and nothing else.

{persona}"""
_GREETING = "Hello! How can I help you?"


def simulated_user(
    persona: Callable[[Task], str],
    *,
    max_turns: int,
    user: Client | None = None,
    tools: Sequence[Tool | ToolSource | Callable[..., Any]] = (),
    hooks: Sequence[Hooks] = (),
    rules: str = RULES,
    word: str = "[END]",
) -> Harness:
    """A harness in which another model speaks as the user until it says that it is done.

    A task's prompt may hold a system message only: then the user speaks first. The user's conversation is the record
    `trajectory.roles["user"]`, in which the user is the assistant. Each answer of the model is followed by the user's,
    tool calls by their results.

    It stops with "completed" when the user is done, with the word of a stop condition, or with "max_turns".

    Args:
        persona: who the user of a task is, and what they want and know; the model does not see it.
        max_turns: the most completions of the model.
        user: the user's model; by default the rollout's own.
        tools: what the model may call.
        hooks: what happens before, between and after the turns.
        rules: the user's instructions; `{persona}` and `{word}` are filled in.
        word: what the user says to end the conversation.
    """
    if max_turns < 1:
        raise ConfigError(f"simulated_user(max_turns={max_turns}); expected at least 1")

    async def harness(rollout: Rollout) -> str:
        told = rules.replace("{persona}", persona(rollout.task)).replace("{word}", word)
        other = rollout.role("user", [{"role": "system", "content": told}], client=user)

        async def ask(said: str) -> bool:
            """Tells the user what the model said; whether the conversation goes on."""
            other.messages.append({"role": "user", "content": said})
            answer = (await other.complete())["content"] or ""
            if word in answer:
                return False
            rollout.messages.append({"role": "user", "content": answer})
            return True

        async with AsyncExitStack() as connections:
            known = await open_tools(tools, connections)
            schemas = [tool.schema for tool in known.values()]

            async def play() -> str:
                spoken = [m for m in rollout.messages if m["role"] == "user"]
                other.messages += [{"role": "user", "content": _GREETING}] if spoken else []
                other.messages += [{"role": "assistant", "content": m["content"]} for m in spoken]
                if not spoken and not await ask(_GREETING):
                    return "completed"
                for _ in range(max_turns):
                    message = await rollout.complete(schemas)
                    await answer_calls(rollout, message, known)
                    goes_on = bool(message.get("tool_calls")) or await ask(message["content"] or "")
                    if stop := await end_turn(rollout, hooks):
                        return stop
                    if not goes_on:
                        return "completed"
                return "max_turns"

            return await hooked(rollout, hooks, play)

    return harness
