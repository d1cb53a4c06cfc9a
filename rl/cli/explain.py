"""Hydra's and OmegaConf's errors in our words: the key, the value found, what was expected, the way out."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import NoneType
from typing import Any, get_args, get_type_hints

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import MarkedYAMLError

from envs.errors import ConfigError, unknown_name

Schemas = Mapping[str, type[Any]]

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


@contextmanager
def explained(verb: str, schemas: Schemas) -> Iterator[None]:
    """Raise a `ConfigError` in place of whatever Hydra has to say about a config.

    Args:
        verb: the root config that is being composed.
        schemas: the dataclass of every root config.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException, MarkedYAMLError) as error:
        raise _explain(error, verb, schemas) from error


def _explain(error: Exception, verb: str, schemas: Schemas) -> ConfigError:
    cause = _omegaconf_cause(error)
    where = _file_of(error)
    match error:
        case MissingConfigException():
            group, _, name = (error.missing_cfg_file or "").partition("/")
            if group == "experiment" and "/" in name:
                return _relative_choice(name.partition("/")[0])
            return unknown_name(_noun(group), name, error.options or [], f"see rl {verb} --help")
        case OverrideParseException():
            return unreadable(error)
        case MarkedYAMLError():
            return ConfigError(f"not valid YAML: {' '.join(str(error).split())}")
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        return _unknown_key(cause.full_key, verb, schemas, where)
    if isinstance(cause, ValidationError) and cause.full_key:
        return _wrong_type(cause, schemas[verb], where)
    if unused := re.search(r"Could not override '([^']+)'", str(error)):
        if unused[1].startswith("experiment/"):
            return _relative_choice(unused[1].partition("/")[2].partition("@")[0])
        return _unknown_key(unused[1], verb, schemas, where)
    if cause is not None:
        return _other(cause, where)
    return ConfigError(str(error).strip().splitlines()[0])


def unreadable(error: OverrideParseException) -> ConfigError:
    """An argument that is no override."""
    argument = error.override
    key, equals, value = argument.partition("=")
    if not equals:
        return ConfigError(f"cannot read the argument '{argument}'; expected KEY=VALUE, for example env=reverse_text")
    token = re.search(r"(?:input|at:) '(.*?)'(?: expecting|$)", str(error.message), re.MULTILINE)
    reason = f": unexpected '{token[1]}'".replace("'<EOF>'", "end") if token else ""
    return ConfigError(
        f"cannot read the argument '{argument}'{reason}; "
        f"a text with special characters needs quotes inside quotes: '{key}=\"{value}\"'"
    )


def _relative_choice(group: str) -> ConfigError:
    """A choice in an experiment that Hydra looks for below experiment/."""
    return ConfigError(
        f"an experiment chooses from a group with a slash: `- override /{group}: NAME` under `defaults:`"
    )


def _unknown_key(key: str, verb: str, schemas: Schemas, where: str) -> ConfigError:
    section, _, leaf = key.rpartition(".")
    known = _keys(schemas[verb], section) + ([] if section else _groups_beside(verb))
    hints = []
    if verbs := [other for other, schema in schemas.items() if key in _keys(schema, section)]:
        hints.append(f"it is a setting of rl {' and rl '.join(verbs)}")
    if elsewhere := [k for k in _leaves(schemas[verb]) if k.rpartition(".")[2] == leaf]:
        hints.append(f"there is {' and '.join(elsewhere)}")
    return unknown_name("key", key, known, ("; ".join(hints) + where).removeprefix("; "))


def _wrong_type(cause: ValidationError, schema: type[Any], where: str) -> ConfigError:
    key = cause.full_key or ""
    kind, default = _field(schema, key)
    example = "" if default is None else f", for example {key}={_plain(default)}"
    if isinstance(cause.value, dict):
        return ConfigError(f"{key} has no keys of its own; expected {_in_words(kind)}{example}{where}")
    return ConfigError(f"{key} is {_literal(cause.value)}; expected {_in_words(kind)}{example}{where}")


def _other(cause: OmegaConfBaseException, where: str) -> ConfigError:
    if "does not support deletion" in str(cause):
        return ConfigError(f"cannot delete '{cause.full_key}': every run has it; give it another value{where}")
    key = f"{cause.full_key}: " if cause.full_key else ""
    return ConfigError(key + str(cause).strip().splitlines()[0] + where)


def _omegaconf_cause(error: BaseException | None) -> OmegaConfBaseException | None:
    """The first error in the chain that knows its key; else the first of OmegaConf's."""
    found: OmegaConfBaseException | None = None
    while error is not None:
        if isinstance(error, OmegaConfBaseException):
            if error.full_key:
                return error
            found = found or error
        error = error.__cause__ or error.__context__
    return found


def _file_of(error: Exception) -> str:
    origin = re.match(r"In '([^']+)': \w+ raised while composing", str(error))
    return f"; in {origin[1]}.yaml" if origin else ""


def _noun(group: str) -> str:
    return {"env": "environment"}.get(group, group)


def _groups_beside(verb: str) -> list[str]:
    """Groups that have no section of their own in the config: an experiment changes all the others."""
    return ["experiment"] if verb == "train" else []


# The schema


def _keys(schema: type[Any], section: str) -> list[str]:
    """Every key of a section of the schema, as it is written on the command line; none if there is no such section."""
    kind: Any = schema
    for name in filter(None, section.split(".")):
        kind = get_type_hints(kind).get(name) if dataclasses.is_dataclass(kind) else None
    if not dataclasses.is_dataclass(kind):
        return []
    return [f"{section}.{field.name}" if section else field.name for field in dataclasses.fields(kind)]


def _leaves(schema: type[Any], section: str = "") -> Iterator[str]:
    for key in _keys(schema, section):
        below = list(_leaves(schema, key))
        yield from below or [key]


def _field(schema: type[Any], key: str) -> tuple[Any, Any]:
    """The type of a key and its default."""
    kind: Any = schema
    value: Any = schema()
    for name in key.split("."):
        if dataclasses.is_dataclass(kind):
            kind, value = get_type_hints(kind)[name], getattr(value, name)
        else:  # a dictionary: of its values
            kind, value = get_args(kind)[1], value.get(name)
    return kind, value


def _in_words(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return "a section: " + ", ".join(field.name for field in dataclasses.fields(kind))
    return " or ".join(WORDS.get(part, str(part)) for part in get_args(kind) or [kind])


def _literal(value: Any) -> str:
    """The value as YAML writes it; a text in quotes where it is one that was found."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case _:
            return repr(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _literal(value)
