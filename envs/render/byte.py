"""The chat format of our own small models: bytes, and a token on either side of each message."""

from collections.abc import Sequence

from envs.render.hermes import describe_tools, read_calls, spell_calls
from envs.types import Message, ToolSchema

_ROLES = ("system", "user", "assistant", "tool")
_END = 256
_FIRST_ROLE = _END + 1


class ByteRenderer:
    """The chat format of our small models: a role token, the UTF-8 bytes of the text, an end token.

    One token per character of plain English, and no text that it cannot write. Ids 0-255 are bytes, 256 ends a
    message, 257-260 begin one of each role, 261-263 are reserved. Tools are described in the system message, and
    called by writing `<tool_call>{"name": …, "arguments": {…}}</tool_call>`. Reasoning has no place in it: that of an
    earlier model is left out.

    Args:
        describe_tools: whether the system message describes the tools. A small model that learns its environment's
            calls from demonstrations can do without, and its conversations are much shorter.
    """

    vocab_size: int = 264  # a multiple of 8; the last three are reserved
    stop_ids = (_END,)
    merges: tuple[tuple[str, str], ...] = ()  # pieces of text that are tokens of their own (`SubwordRenderer`)

    def __init__(self, *, describe_tools: bool = True) -> None:
        self._describe_tools = describe_tools

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        shown = describe_tools(messages, tools) if self._describe_tools else messages
        ids = [token for message in shown for token in self._message(message)]
        return [*ids, _role("assistant")]

    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
    ) -> list[int]:
        ids = [*prompt_ids, *completion_ids]
        # A completion that ran out of tokens did not write its own end.
        closed = ids if ids[-1] == _END else [*ids, _END]
        return [*closed, *(token for message in messages for token in self._message(message)), _role("assistant")]

    def answer(self, message: Message) -> list[int]:
        return self._message(message)[1:]

    def parse(self, ids: Sequence[int], *, prompt_ids: Sequence[int] = (), tools: Sequence[ToolSchema] = ()) -> Message:
        content, calls = read_calls(self.text(ids[:-1] if ids and ids[-1] == _END else ids))
        if not calls:
            return {"role": "assistant", "content": content}
        return {"role": "assistant", "content": content, "tool_calls": calls}

    def text(self, ids: Sequence[int]) -> str:
        return b"".join(self._spell(token) for token in ids).decode("utf-8", errors="replace")

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with nothing around them."""
        return list(text.encode("utf-8", "surrogatepass"))

    def texts(self, ids: Sequence[int]) -> list[str]:
        """What each message of a conversation says."""
        pieces: list[list[int]] = [[]]
        for token in ids:
            if _END <= token < ByteRenderer.vocab_size:
                pieces.append([])
            else:
                pieces[-1].append(token)
        return [self.text(piece) for piece in pieces if piece]

    def _message(self, message: Message) -> list[int]:
        text = (message["content"] or "") + spell_calls(message.get("tool_calls", ()))
        return [_role(message["role"]), *self.encode(text), _END]

    def _spell(self, token: int) -> bytes:
        if token < _END:
            return bytes((token,))
        names = ("end", *_ROLES)
        index = token - _END
        return f"<|{names[index] if index < len(names) else token}|>".encode()


def _role(role: str) -> int:
    return _FIRST_ROLE + _ROLES.index(role)
