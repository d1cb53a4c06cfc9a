"""Messages to tokens and back, such that a conversation only ever grows by exact tokens.

What a model sampled is never tokenised again: the prompt of the next turn is the last prompt, the sampled tokens, and
the tokens of what was added since.
"""

import json
import re
from collections.abc import Sequence
from typing import Protocol

from envs.types import Message, ToolCall, ToolSchema


class Renderer(Protocol):
    """Knows one model's chat format."""

    @property
    def vocab_size(self) -> int:
        """Ids are in `[0, vocab_size)`."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an assistant message."""
        ...

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """The tokens of a whole conversation, up to where the assistant begins to speak."""
        ...

    def extend(self, ids: Sequence[int], messages: Sequence[Message]) -> list[int]:
        """The prompt of the next turn: starts with exactly `ids` (prompt and completion of the turn before)."""
        ...

    def answer(self, message: Message) -> list[int]:
        """The tokens a model would sample to say `message`, end token included."""
        ...

    def parse(self, ids: Sequence[int]) -> Message:
        """The assistant message that sampled tokens spell; never fails, whatever was sampled."""
        ...


_ROLES = ("system", "user", "assistant", "tool")
_END = 256
_FIRST_ROLE = _END + 1
_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class ByteRenderer:
    """The chat format of our small models: a role token, the UTF-8 bytes of the text, an end token.

    One token per character of plain English, and no text that it cannot write. Ids 0-255 are bytes, 256 ends a
    message, 257-260 begin one of each role, 261-263 are reserved. Tools are described in the system message, and
    called by writing `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.
    """

    vocab_size = 264  # a multiple of 8; the last three are reserved
    stop_ids = (_END,)

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        ids = [token for message in _with_tools(messages, tools) for token in _message(message)]
        return [*ids, _role("assistant")]

    def extend(self, ids: Sequence[int], messages: Sequence[Message]) -> list[int]:
        # A completion that ran out of tokens did not write its own end.
        closed = [*ids] if ids[-1] == _END else [*ids, _END]
        return [*closed, *(token for message in messages for token in _message(message)), _role("assistant")]

    def answer(self, message: Message) -> list[int]:
        return _message(message)[1:]

    def parse(self, ids: Sequence[int]) -> Message:
        body = ids[:-1] if ids and ids[-1] == _END else ids
        text = b"".join(_spell(token) for token in body).decode("utf-8", errors="replace")
        calls = _parse_calls(text)
        if not calls:
            return {"role": "assistant", "content": text}
        return {"role": "assistant", "content": _TOOL_CALL.sub("", text).strip() or None, "tool_calls": calls}


def _role(role: str) -> int:
    return _FIRST_ROLE + _ROLES.index(role)


def _message(message: Message) -> list[int]:
    text = message["content"] or ""
    for call in message.get("tool_calls", ()):
        arguments = call["function"]["arguments"]
        text += f'<tool_call>{{"name": {json.dumps(call["function"]["name"])}, "arguments": {arguments}}}</tool_call>'
    return [_role(message["role"]), *text.encode("utf-8", "surrogatepass"), _END]


def _spell(token: int) -> bytes:
    if token < _END:
        return bytes((token,))
    names = ("end", *_ROLES)
    index = token - _END
    return f"<|{names[index] if index < len(names) else token}|>".encode()


def _with_tools(messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[Message]:
    if not tools:
        return list(messages)
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = f'Tools:\n{listed}\nCall one with <tool_call>{{"name": …, "arguments": {{…}}}}</tool_call>.'
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _parse_calls(text: str) -> list[ToolCall]:
    """The calls a text contains."""
    calls: list[ToolCall] = []
    for number, body in enumerate(_TOOL_CALL.findall(text)):
        name, arguments = _parse_call(body)
        calls.append({"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}})
    return calls


def _parse_call(body: str) -> tuple[str, str]:
    """Name and arguments. What is no JSON object keeps its text as arguments, for the tool to complain."""
    try:
        call = json.loads(body)
        if not isinstance(call, dict):
            return "", body
        name, arguments = call.get("name"), json.dumps(call.get("arguments", {}))
    except (ValueError, RecursionError):  # a model may well open a thousand brackets
        return "", body
    # JSON can spell half of a surrogate pair, which no file can hold.
    return name.encode("utf-8", "replace").decode() if isinstance(name, str) else "", arguments
