"""The messages and tools of a chat request."""

from typing import Any

from envs.types import Message, ToolCall, ToolSchema
from rl.inference.server.validation import Fields, Refused, shown

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def read_messages(value: Any) -> list[Message]:
    """The conversation.

    Raises:
        Refused: naming the message and the field that does not fit.
    """
    if not isinstance(value, list) or not value:
        raise Refused(f"messages is {shown(value)}; expected a list of at least one message", field="messages")
    return [_message(_object(entry, f"messages[{i}]")) for i, entry in enumerate(value)]


def read_tools(fields: Fields) -> list[ToolSchema]:
    """What the model may call; none with `tool_choice: "none"`."""
    given = fields.take("tools", [])
    if not isinstance(given, list):
        raise fields.unfit("tools", given, "a list")
    for i, entry in enumerate(given):
        tool = _object(entry, f"tools[{i}]")
        tool.only("type", ("function",))
        function = _object(tool.take("function"), tool.name("function"))
        if function.text("name") is None:
            raise function.unfit("name", None, "the name of the function")
        if not isinstance(function.take("parameters", {}), dict):
            raise function.unfit("parameters", function.take("parameters"), "a JSON schema")
    choice = fields.only("tool_choice", ("auto", "none"), "the model cannot be made to call a tool")
    fields.only("parallel_tool_calls", (True,), "a model may call as many as it likes")
    return [] if choice == "none" else given


def _message(fields: Fields) -> Message:
    role = fields.take("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise fields.unfit("role", role, " or ".join(_ROLES))
    content = _content(fields)
    message: Message = {"role": _ROLES[role], "content": content}  # type: ignore[typeddict-item]
    if calls := fields.take("tool_calls"):
        if role != "assistant" or not isinstance(calls, list):
            raise fields.unfit("tool_calls", calls, "a list of calls, in a message of the assistant")
        message["tool_calls"] = [
            _call(_object(call, f"{fields.name('tool_calls')}[{i}]")) for i, call in enumerate(calls)
        ]
    if content is None and not calls:
        if role != "assistant":
            raise fields.unfit("content", None, "a text")
        message["content"] = ""
    for name in ("tool_call_id", "name", "reasoning_content"):
        if (text := fields.text(name)) is not None:
            message[name] = text
    fields.ignore("annotations")
    for name in ("refusal", "audio", "function_call"):
        fields.only(name, ())
    fields.done()
    return message


def _content(fields: Fields) -> str | None:
    """The text of a message; parts of text are joined."""
    content = fields.take("content")
    if not isinstance(content, list):
        text: str | None = fields.text("content")
        return text
    parts = [_object(part, f"{fields.name('content')}[{i}]") for i, part in enumerate(content)]
    for part in parts:
        if part.take("type") != "text":
            raise part.unfit("type", part.take("type"), '"text": this model reads nothing else')
        if part.text("text") is None:
            raise part.unfit("text", None, "a text")
    return "".join(part.text("text") for part in parts)


def _call(fields: Fields) -> ToolCall:
    fields.only("type", ("function",))
    function = _object(fields.take("function"), fields.name("function"))
    name, arguments = function.text("name"), function.text("arguments")
    if name is None or arguments is None:
        raise fields.unfit("function", fields.take("function"), "an object with name and arguments, both text")
    fields.ignore("index")
    call: ToolCall = {
        "id": fields.text("id", ""),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    fields.done()
    return call


def _object(value: Any, where: str) -> Fields:
    if not isinstance(value, dict):
        raise Refused(f"{where} is {shown(value)}; expected an object", field=where)
    return Fields(value, where)
