"""Tools in plain text: how they are described, called and read back where a chat format has no words of its own.

The form is the one Hermes made common: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from envs.types import Message, ToolCall, ToolSchema

_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def describe_tools(messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[Message]:
    """The conversation with `tools` described in its system message."""
    if not tools:
        return list(messages)
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = f'Tools:\n{listed}\nCall one with <tool_call>{{"name": …, "arguments": {{…}}}}</tool_call>.'
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def spell_calls(calls: Sequence[ToolCall]) -> str:
    """The calls as a model would write them."""
    return "".join(
        f'<tool_call>{{"name": {json.dumps(call["function"]["name"])}, "arguments": {call["function"]["arguments"]}}}'
        "</tool_call>"
        for call in calls
    )


def read_calls(text: str) -> tuple[str | None, list[ToolCall]]:
    """What a text says beside its calls (None for nothing), and the calls; without calls the text stays as it is."""
    calls = [make_call(number, *_parse_call(body)) for number, body in enumerate(_TOOL_CALL.findall(text))]
    return (_TOOL_CALL.sub("", text).strip() or None, calls) if calls else (text, [])


def make_call(number: int, name: Any, arguments: Any) -> ToolCall:
    """A call in OpenAI's form.

    Args:
        number: which of the message's calls it is.
        name: what the model called; anything but a text becomes the empty name, which no tool has.
        arguments: JSON text stays as it is, any other value is written as JSON.
    """
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    # JSON can spell half of a surrogate pair, which no file can hold.
    known = name.encode("utf-8", "replace").decode() if isinstance(name, str) else ""
    return {"id": f"call_{number}", "type": "function", "function": {"name": known, "arguments": text}}


def _parse_call(body: str) -> tuple[Any, str]:
    """Name and arguments. What is no JSON object keeps its text as arguments, for the tool to complain."""
    try:
        call = json.loads(body)
        if not isinstance(call, dict):
            return "", body
        return call.get("name"), json.dumps(call.get("arguments", {}))
    except (ValueError, RecursionError):  # a model may well open a thousand brackets
        return "", body
