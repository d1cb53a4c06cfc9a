"""Errors that explain themselves: the thing, the value found, what was expected, the way out.

`UpswingError` is for people: the command line prints its message without a traceback. Whatever else is raised is a
bug, ours or an environment author's, and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UpswingError(Exception):
    """A problem the user can solve; the message says how."""


class ConfigError(UpswingError):
    """A name, key or value that was given does not fit."""


class MissingPackageError(ConfigError):
    """An environment needs a package that is not installed; the message says how to install it."""


class TasksetError(UpswingError):
    """The tasks of an environment are unusable (duplicate ids, empty split, malformed row …)."""


class InfrastructureError(UpswingError):
    """Something around the model failed: server, network, sandbox, judge.

    A rollout that ends in one is marked as failed, retried, and left out of all statistics. It is never a reward.
    """


class ContextLengthError(UpswingError):
    """A prompt does not fit into the model's context."""


# A connection that breaks or times out inside a harness or a judge is the network's fault as well; other OSErrors (a
# missing file, no permission) are bugs of the environment.
INFRASTRUCTURE = (InfrastructureError, ConnectionError, TimeoutError)


def unknown_name(kind: str, found: str, known: Iterable[str], hint: str = "") -> ConfigError:
    """A `ConfigError` for a name that does not exist, with its closest matches.

    Args:
        kind: what was looked up, for example "algorithm".
        found: the name that was given.
        known: every name that would have been accepted.
        hint: one more sentence on the way out.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(found, names, n=3, cutoff=0.5)
    parts = [f"unknown {kind} '{found}'"]
    if close:
        parts.append("did you mean " + " or ".join(f"'{name}'" for name in close) + "?")
    if names:
        parts.append(f"known: {', '.join(names)}")
    if hint:
        parts.append(hint)
    return ConfigError("; ".join(parts))


def first_few(names: Iterable[str], most: int = 8) -> str:
    """The first names for an error message, each once, and how many more there are."""
    distinct = list(dict.fromkeys(names))
    rest = len(distinct) - most
    return ", ".join(distinct[:most]) + (f" and {rest} more" if rest > 0 else "")
