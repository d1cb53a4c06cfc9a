"""The part of JSON Schema that answers of models are asked to keep to; whatever else a schema says is refused."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from envs.errors import unknown_name

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    ),
}
_WORDS = {"title", "description", "default", "examples", "$schema", "$id"}
_BOUNDS: Mapping[str, tuple[Callable[[Any], bool], Callable[[Any, Any], bool]]] = {
    "minimum": (_TYPES["number"], lambda value, bound: value >= bound),
    "maximum": (_TYPES["number"], lambda value, bound: value <= bound),
    "exclusiveMinimum": (_TYPES["number"], lambda value, bound: value > bound),
    "exclusiveMaximum": (_TYPES["number"], lambda value, bound: value < bound),
    "minLength": (_TYPES["string"], lambda value, bound: len(value) >= bound),
    "maxLength": (_TYPES["string"], lambda value, bound: len(value) <= bound),
    "pattern": (_TYPES["string"], lambda value, bound: re.search(bound, value) is not None),
    "minItems": (_TYPES["array"], lambda value, bound: len(value) >= bound),
    "maxItems": (_TYPES["array"], lambda value, bound: len(value) <= bound),
}
_KNOWN = {
    "type",
    "enum",
    "const",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "anyOf",
    *_BOUNDS,
    *_WORDS,
}


def check_schema(schema: Mapping[str, Any]) -> None:
    """Checks that every keyword and type of a schema is one that `misfit` looks at.

    Raises:
        ConfigError: for one that is not.
    """
    for keyword in schema:
        if keyword not in _KNOWN:
            raise unknown_name("keyword of a JSON schema", keyword, _KNOWN)
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind not in _TYPES:
            raise unknown_name("type of a JSON schema", kind, _TYPES)
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
    inner += [schema[key] for key in ("items", "additionalProperties") if isinstance(schema.get(key), Mapping)]
    for each in inner:
        check_schema(each)


def misfit(value: Any, schema: Mapping[str, Any], where: str = "it") -> str | None:
    """What keeps a value from fitting a schema, in words; None if it fits.

    Args:
        value: parsed JSON.
        schema: looked over by `check_schema`.
        where: what the value is called.
    """
    kinds = schema.get("type")
    if kinds is not None:
        named = [kinds] if isinstance(kinds, str) else list(kinds)
        if not any(_TYPES[kind](value) for kind in named):
            return f"{where} is {value!r}; expected {' or '.join(named)}"
    if "enum" in schema and not any(_equal(value, option) for option in schema["enum"]):
        return f"{where} is {value!r}; expected one of {schema['enum']!r}"
    if "const" in schema and not _equal(value, schema["const"]):
        return f"{where} is {value!r}; expected {schema['const']!r}"
    for keyword, (applies, holds) in _BOUNDS.items():
        if keyword in schema and applies(value) and not holds(value, schema[keyword]):
            return f"{where} is {value!r}; expected {keyword} {schema[keyword]!r}"
    if "anyOf" in schema and all(misfit(value, option, where) is not None for option in schema["anyOf"]):
        return f"{where} is {value!r}, which fits none of the {len(schema['anyOf'])} options"
    if isinstance(value, dict):
        return _object_misfit(value, schema, where)
    if isinstance(value, list) and "items" in schema:
        found = (misfit(item, schema["items"], f"{where}[{i}]") for i, item in enumerate(value))
        return next((problem for problem in found if problem is not None), None)
    return None


def _object_misfit(value: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> str | None:
    properties, further = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            return f"{where} has no '{name}'"
    for name, item in value.items():
        inner = properties.get(name, further)
        if inner is False:
            return f"{where} has '{name}', which is not asked for"
        if inner is not True and (problem := misfit(item, inner, f"{where}.{name}")) is not None:
            return problem
    return None


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)
