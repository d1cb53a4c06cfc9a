"""Python functions as tools: a JSON schema from the signature and docstring, and calls that cannot break a rollout."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from envs.annotations import Misfit, fit
from envs.errors import InfrastructureError
from envs.tool_schema import HIDDEN, describe_function, json_schema
from envs.types import FunctionCall, ToolSchema

T = TypeVar("T")
Hidden = Annotated[T, HIDDEN]
"""`db: Hidden[Database]`: an argument that the model does not see; it is given the attribute `db` of the state."""


class ToolFailure(Exception):
    """Raised by a tool to tell the model, in these words and no others, that its call failed."""


@dataclass(frozen=True)
class Tool:
    """A function a model may call.

    Attributes:
        name: what the model calls it.
        description: what the model reads about it.
        parameters: JSON schema of its arguments.
        function: what is called, sync (in a thread) or async.
        hints: the Python type of each argument; None if the function checks its arguments itself.
        hidden: arguments that come from the rollout's state: "state" is all of it, any other name its attribute.
        timeout: the most seconds a call may take.
        max_chars: results longer than this are cut, with a notice.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., Any]
    hints: Mapping[str, Any] | None
    hidden: Sequence[str]
    timeout: float
    max_chars: int

    @property
    def schema(self) -> ToolSchema:
        """The tool as OpenAI describes it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


def make_tool(function: Callable[..., Any], *, timeout: float = 30.0, max_chars: int = 20_000) -> Tool:
    """A tool from a typed function with a Google-style docstring.

    What the docstring says before its sections describes the tool, its `Args:` section the arguments. A parameter
    called `state` is not shown to the model: it receives the rollout's `state`. Nor is `db: Hidden[Database]`, which
    receives `state.db`.

    Args:
        function: sync or async; sync ones run in a thread, so that they do not hold up other rollouts (a thread that
            takes too long is given up on, but cannot be stopped).
        timeout: the most seconds a call may take.
        max_chars: results longer than this are cut, with a notice.

    Raises:
        ConfigError: no docstring, a parameter without a type, or a type that JSON cannot express.
    """
    name, description, parameters, hints, hidden = describe_function(function)
    schema = {
        "type": "object",
        "properties": {
            parameter.name: json_schema(hints[parameter.name], name, text, parameter.default)
            for parameter, text in parameters
        },
        "required": [parameter.name for parameter, _ in parameters if parameter.default is parameter.empty],
        "additionalProperties": False,
    }
    shown = {parameter.name: hints[parameter.name] for parameter, _ in parameters}
    return Tool(name, description, schema, function, shown, hidden, timeout, max_chars)


async def call_tool(tools: Mapping[str, Tool], call: FunctionCall, state: Any) -> str:
    """Runs a call as the model wrote it and returns the text to show it.

    Whatever is wrong with the call, and whatever the tool raises, becomes a text that tells the model what to change.

    Raises:
        InfrastructureError: if the tool raises it: not the model's doing.
        AttributeError: if the state has no attribute for a hidden argument: a bug of the environment.
    """
    tool = tools.get(call["name"])
    if tool is None:
        return f"Error: there is no tool '{call['name']}'. The tools are: {', '.join(tools) or 'none'}."
    try:
        arguments = parse_arguments(tool, call["arguments"])
    except ValueError as error:
        return f"Error: {error}."
    for name in tool.hidden:
        arguments[name] = state if name == "state" else getattr(state, name)
    try:
        async with asyncio.timeout(tool.timeout) as limit:
            result = await _call(tool.function, arguments)
    except InfrastructureError:
        raise
    except ToolFailure as failure:
        return to_text(f"Error: {failure}", tool.max_chars)
    except Exception as error:  # noqa: BLE001 - the model is shown what its call led to
        if isinstance(error, TimeoutError) and limit.expired():
            return f"Error: {tool.name} took longer than {tool.timeout:g} s and was stopped."
        return to_text(f"Error: {tool.name} failed with {type(error).__name__}: {error}", tool.max_chars)
    return to_text(result, tool.max_chars)


def parse_arguments(tool: Tool, text: str) -> dict[str, Any]:
    """The Python arguments that the model's JSON text stands for.

    Raises:
        ValueError: not a JSON object; an unknown, missing or wrongly typed argument. The message is for the model.
    """
    expected = ", ".join(tool.parameters.get("properties", ())) or "no arguments"
    try:
        given = json.loads(text) if text.strip() else {}
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the arguments of {tool.name} are not valid JSON ({error})") from None
    if not isinstance(given, dict):
        raise ValueError(f"the arguments of {tool.name} must be a JSON object with {expected}; found {text[:200]}")
    if tool.hints is None:
        return given
    for name in given:
        if name not in tool.hints:
            raise ValueError(f"{tool.name} has no argument '{name}'; it takes {expected}")
    for name in tool.parameters["required"]:
        if name not in given:
            raise ValueError(f"{tool.name} needs the argument '{name}'")
    try:
        return {name: fit(value, tool.hints[name], name) for name, value in given.items()}
    except Misfit as misfit:
        found = json.dumps(misfit.value, ensure_ascii=False, default=str)[:200]
        raise ValueError(f"{tool.name}: {misfit.where} is {found}, expected {misfit.expected}") from None


def to_text(result: Any, max_chars: int) -> str:
    """A tool's result as the model reads it: text as it is, anything else as JSON, cut at `max_chars`."""
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n[cut: {max_chars} of {len(text)} characters shown]"


async def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(**arguments)
    return await asyncio.to_thread(function, **arguments)
