"""Type annotations as a contract for values that come from outside: configs, command lines, tool calls of a model.

`fit` answers "is this value what the annotation says?" and makes the conversions that lose nothing (a JSON list to a
tuple, an int to a float, a string to the enum member with that value).
"""

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict


class Misfit(ValueError):
    """A value that is not what its annotation says. `where` leads to it: `config.layers[2]`."""

    def __init__(self, where: str, value: object, expected: str) -> None:
        self.where, self.value, self.expected = where, value, expected
        super().__init__(f"{where}: found {value!r} ({type(value).__name__}), expected {expected}")


def fit(value: Any, annotation: Any, where: str) -> Any:
    """Checks `value` against `annotation` and returns it, converted where nothing is lost.

    What cannot be checked (a type variable, a protocol) passes as it is.

    Args:
        value: what was given.
        annotation: a type hint with its strings resolved (see `typing.get_type_hints`).
        where: the name of the value for the error.

    Raises:
        Misfit: if the value is of another type.
    """
    origin = get_origin(annotation)
    if annotation is Any or getattr(annotation, "_is_protocol", False):
        return value
    if origin is Annotated:
        return fit(value, get_args(annotation)[0], where)
    if annotation is None or annotation is types.NoneType:
        return _require(value is None, value, annotation, where)
    if origin in (Union, types.UnionType):
        return _fit_union(value, annotation, where)
    if origin is Literal:
        return _fit_literal(value, annotation, where)
    if annotation is bool or annotation is str:
        return _require(isinstance(value, annotation), value, annotation, where)
    if annotation is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return int(_require(whole and not isinstance(value, bool), value, annotation, where))
    if annotation is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(_require(number, value, annotation, where))
    if (origin or annotation) in (list, tuple, set, frozenset, Sequence, dict, Mapping):
        return _fit_container(value, annotation, where)
    if isinstance(annotation, type):
        return _fit_class(value, annotation, where)
    if origin is Callable or annotation is Callable:
        return _require(callable(value), value, annotation, where)
    return value


def describe(annotation: Any) -> str:
    """The annotation in words for a person: `int or None`, `one of 'a', 'b'`, `list of str`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0])
    if annotation is None or annotation is types.NoneType:
        return "None"
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "one of " + ", ".join(repr(member.value) for member in annotation)
    if origin in (list, set, frozenset, Sequence):
        return f"{origin.__name__.lower()} of {describe(arguments[0])}"
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"tuple of {describe(arguments[0])}"
    if origin is tuple:
        return "tuple of (" + ", ".join(describe(argument) for argument in arguments) + ")"
    if origin in (dict, Mapping):
        return f"mapping from {describe(arguments[0])} to {describe(arguments[1])}"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _require(holds: bool, value: Any, annotation: Any, where: str) -> Any:
    if not holds:
        raise Misfit(where, value, describe(annotation))
    return value


def _fit_union(value: Any, annotation: Any, where: str) -> Any:
    options = get_args(annotation)
    # An exact match first: with `int | float`, 2.0 stays a float.
    for option in sorted(options, key=lambda option: type(value) is not option):
        try:
            return fit(value, option, where)
        except Misfit:
            continue
    raise Misfit(where, value, describe(annotation))


def _fit_literal(value: Any, annotation: Any, where: str) -> Any:
    for option in get_args(annotation):
        if type(option) is type(value) and option == value:
            return value
    raise Misfit(where, value, describe(annotation))


def _fit_container(value: Any, annotation: Any, where: str) -> Any:
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin in (dict, Mapping):
        _require(isinstance(value, Mapping), value, annotation, where)
        if not arguments:
            return value
        key, item = arguments
        return {fit(k, key, f"key of {where}"): fit(v, item, f"{where}[{k!r}]") for k, v in value.items()}
    listed = isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes)
    _require(listed, value, annotation, where)
    make = list if origin is Sequence else origin
    if not arguments:
        return make(value)
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        _require(len(value) == len(arguments), value, annotation, where)
        items = arguments
    else:
        items = (arguments[0],) * len(value)
    return make(fit(v, item, f"{where}[{i}]") for i, (v, item) in enumerate(zip(value, items, strict=True)))


def _fit_class(value: Any, annotation: type, where: str) -> Any:
    if is_typeddict(annotation):
        _require(isinstance(value, Mapping), value, annotation, where)
        hints = get_type_hints(annotation)
        return _fit_record(value, dict, hints, annotation.__required_keys__, where)  # type: ignore[attr-defined]
    if isinstance(value, annotation):
        return value
    if issubclass(annotation, Enum):
        for member in annotation:
            if type(member.value) is type(value) and member.value == value:
                return member
        raise Misfit(where, value, describe(annotation))
    if is_dataclass(annotation) and isinstance(value, Mapping):
        known = {f.name: f for f in fields(annotation) if f.init}
        required = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
        hints = get_type_hints(annotation)
        return _fit_record(value, annotation, {name: hints[name] for name in known}, required, where)
    raise Misfit(where, value, describe(annotation))


def _fit_record(
    value: Mapping[str, Any],
    make: Callable[..., Any],
    hints: Mapping[str, Any],
    required: set[str] | frozenset[str],
    where: str,
) -> Any:
    for name in value:
        if name not in hints:
            raise Misfit(f"{where}.{name}", value[name], f"one of the fields {', '.join(hints)}")
    for name in sorted(required):
        if name not in value:
            raise Misfit(where, value, f"a field '{name}'")
    return make(**{name: fit(item, hints[name], f"{where}.{name}") for name, item in value.items()})
