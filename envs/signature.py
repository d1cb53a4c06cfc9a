"""Keyword arguments from a config or a command line, checked against the function that will receive them."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from envs.annotations import Misfit, fit
from envs.errors import ConfigError


def bind(fn: Callable[..., Any], kwargs: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The keyword arguments to call `fn` with, checked and converted by its annotations.

    Conversions lose nothing: an int becomes the float that is asked for, a list the tuple. Parameters without an
    annotation take anything.

    Args:
        fn: the function that will be called.
        kwargs: what was given.
        kind: what `fn` is to the user, for example "environment 'wordle'".

    Raises:
        ConfigError: an unknown or a missing argument, or a value of another type.
    """
    parameters = inspect.signature(fn).parameters
    named = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in kwargs:
            if name not in named:
                raise _unknown(name, named, kind)
    missing = [name for name, p in named.items() if p.default is p.empty and name not in kwargs]
    if missing:
        raise ConfigError(f"{kind} needs {_quoted(missing)}; its arguments: {describe_parameters(fn)}")
    hints = annotations_of(fn)
    bound = {}
    for name, value in kwargs.items():
        try:
            bound[name] = fit(value, hints[name], name) if name in named and name in hints else value
        except Misfit as misfit:
            raise ConfigError(
                f"{kind}: argument '{misfit.where}' is {misfit.value!r} ({type(misfit.value).__name__}), "
                f"expected {misfit.expected}; set it like {name}={_example(named[name])}"
            ) from None
    return bound


def annotations_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of `fn` with their strings resolved.

    Raises:
        ConfigError: if an annotation names something that does not exist.
    """
    try:
        return get_type_hints(fn, include_extras=True)
    except NameError as error:
        name = getattr(fn, "__qualname__", repr(fn))
        raise ConfigError(
            f"cannot resolve the annotations of {name}: {error}; import that name at the top of the module"
        ) from None


def describe_parameters(fn: Callable[..., Any]) -> str:
    """The parameters of `fn` with their annotations and defaults, as in its definition."""
    return ", ".join(str(parameter) for parameter in inspect.signature(fn).parameters.values()) or "none"


def _unknown(name: str, named: Mapping[str, inspect.Parameter], kind: str) -> ConfigError:
    close = difflib.get_close_matches(name, named, n=3, cutoff=0.5)
    hint = f"; did you mean {_quoted(close, ' or ')}?" if close else ""
    known = ", ".join(str(parameter) for parameter in named.values()) or "none"
    return ConfigError(f"{kind} has no argument '{name}'{hint}; its arguments: {known}")


def _quoted(names: list[str], joint: str = ", ") -> str:
    return joint.join(f"'{name}'" for name in names)


def _example(parameter: inspect.Parameter) -> str:
    return "…" if parameter.default is parameter.empty else str(parameter.default)
