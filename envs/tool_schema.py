"""From a Python function to what a model reads about it."""

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from envs.errors import ConfigError
from envs.signature import annotations_of

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}
HIDDEN = object()
"""What marks an annotation as hidden from the model."""

Described = tuple[str, str, list[tuple[inspect.Parameter, str]], dict[str, Any], tuple[str, ...]]
"""Name, description, parameters with their descriptions, type hints, names of hidden parameters."""


def describe_function(function: Callable[..., Any]) -> Described:
    """What a function that is to be a tool says about itself; a parameter called `state`, or marked as
    `Hidden`, is not the model's to give.

    Raises:
        ConfigError: no name, no docstring, a parameter without a type or of a kind that has no name.
    """
    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise ConfigError(f"{function!r} cannot be a tool without a name; define it with `def`")
    description, documented = parse_docstring(inspect.getdoc(function) or "")
    if not description:
        raise ConfigError(f"tool '{name}' has no docstring; say in it what the tool does: the model reads it")
    hints = annotations_of(function)
    parameters = list(inspect.signature(function).parameters.values())
    hidden = tuple(p.name for p in parameters if p.name == "state" or _is_hidden(hints.get(p.name)))
    parameters = [p for p in parameters if p.name not in hidden]
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"tool '{name}': '{parameter}' has no name that a model could give; list the arguments")
        if parameter.name not in hints:
            raise ConfigError(f"tool '{name}': annotate the parameter '{parameter.name}' with its type")
    for documented_name in documented:
        if documented_name not in {p.name for p in parameters}:
            raise ConfigError(f"tool '{name}': its docstring describes '{documented_name}', which is no parameter")
    return name, description, [(p, documented.get(p.name, "")) for p in parameters], hints, hidden


def _is_hidden(annotation: Any) -> bool:
    return get_origin(annotation) is Annotated and HIDDEN in get_args(annotation)[1:]


def parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """What a Google-style docstring says before its sections, and about each argument."""
    before, _, rest = _cut(text, r"^(Args|Arguments|Parameters):\s*$")
    before = _cut(before, r"^(Returns|Raises|Yields|Examples?|Notes?):\s*$")[0]
    section = _cut(rest, r"^\S")[0]
    documented: dict[str, str] = {}
    name, indent = "", None
    for line in section.splitlines():
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        indent = depth if indent is None else indent
        entry = re.match(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)", line)
        if depth == indent and entry:
            name = entry[1]
            documented[name] = entry[2].strip()
        elif name:
            documented[name] = f"{documented[name]} {line.strip()}".strip()
    paragraphs = re.split(r"\n\s*\n", before.strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs), documented


def json_schema(annotation: Any, tool: str, description: str = "", default: Any = inspect.Parameter.empty) -> Any:
    """The JSON schema of a type, with a description and a default if there are any.

    Raises:
        ConfigError: for a type that JSON cannot express.
    """
    schema = _schema(annotation, tool)
    if description:
        schema["description"] = description
    if default is not inspect.Parameter.empty:
        schema["default"] = default.value if isinstance(default, Enum) else default
    return schema


def _schema(annotation: Any, tool: str) -> dict[str, Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        texts = [text for text in arguments[1:] if isinstance(text, str)]
        return _schema(arguments[0], tool) | ({"description": " ".join(texts)} if texts else {})
    if annotation is Any:
        return {}
    if annotation is None or annotation in _SCALARS:
        return {"type": _SCALARS[annotation or types.NoneType]}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(argument, tool) for argument in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return {"enum": [member.value for member in annotation]}
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        items = [_schema(argument, tool) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if (origin or annotation) in (list, tuple, set, frozenset, Sequence):
        return {"type": "array", **({"items": _schema(arguments[0], tool)} if arguments else {})}
    if (origin or annotation) in (dict, Mapping):
        values = {"additionalProperties": _schema(arguments[1], tool)} if arguments else {}
        if arguments and arguments[0] is not str:
            raise ConfigError(f"tool '{tool}': the keys of a JSON object are str; found {annotation}")
        return {"type": "object", **values}
    if is_typeddict(annotation) or (is_dataclass(annotation) and isinstance(annotation, type)):
        return _record_schema(annotation, tool)
    raise ConfigError(
        f"tool '{tool}': JSON has nothing like {annotation}; use str, int, float, bool, Literal, list, dict"
    )


def _record_schema(annotation: Any, tool: str) -> dict[str, Any]:
    hints = get_type_hints(annotation, include_extras=True)
    if is_typeddict(annotation):
        required = sorted(annotation.__required_keys__)
    else:
        known = [f for f in fields(annotation) if f.init]
        hints = {f.name: hints[f.name] for f in known}
        required = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING]
    properties = {name: _schema(hint, tool) for name, hint in hints.items()}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _cut(text: str, pattern: str) -> tuple[str, str, str]:
    """`text` before the first line that matches, the line, and what follows."""
    match = re.search(pattern, text, re.MULTILINE)
    return (text, "", "") if match is None else (text[: match.start()], match[0], text[match.end() :])
