"""A model that says what you tell it to: for tests, documentation and dry runs of an environment."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from envs.errors import ConfigError
from envs.types import Completion, Message, Sampling, ToolCall, ToolSchema, Turn

Reply = str | Message | Completion
Script = Sequence[Reply] | Callable[[list[Message]], Reply | Awaitable[Reply]]


@dataclass(frozen=True)
class Request:
    """What the client was asked."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...]
    sampling: Sampling
    previous: Turn | None


@dataclass
class ScriptedClient:
    """Answers from a script, and remembers what it was asked.

        client = ScriptedClient(["4", "5"])                                   # first "4", then "5"
        client = ScriptedClient(lambda messages: messages[-1]["content"])     # an echo

    Attributes:
        script: replies in the order of the requests, or a function (sync or async) from the messages to a reply. A
            reply is a text, a message, or a whole `Completion`. What the function raises, `complete` raises.
        requests: every request so far.

    Raises:
        ConfigError: from `complete`, when a list of replies is used up.
    """

    script: Script
    requests: list[Request] = field(default_factory=list)

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
        sampling: Sampling = Sampling(),
        *,
        previous: Turn | None = None,
    ) -> Completion:
        """The script's next reply; see `Client.complete`."""
        number = len(self.requests)
        self.requests.append(Request(tuple(messages), tuple(tools), sampling, previous))
        if callable(self.script):
            reply = self.script(list(messages))
            if inspect.isawaitable(reply):
                reply = await reply
        elif number < len(self.script):
            reply = self.script[number]
        else:
            raise ConfigError(f"the script has {len(self.script)} replies and was asked for one more")
        return _completion(reply)

    async def close(self) -> None:
        """Nothing to let go of."""


def tool_call(name: str, arguments: str, id: str = "call_0") -> Message:
    """The message of a model that calls one tool; `arguments` is JSON text."""
    call: ToolCall = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _completion(reply: Reply) -> Completion:
    if isinstance(reply, Completion):
        return reply
    message: Message = {"role": "assistant", "content": reply} if isinstance(reply, str) else reply
    return Completion(message, "tool_calls" if message.get("tool_calls") else "stop")
