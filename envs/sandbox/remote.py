"""What the sandboxes of hosted services have in common: our warden runs there, as a command whose input stays open.

The machine belongs to one rollout, but the warden is not alone on it: the service's own helpers run beside it. It
starts as root where the service lets it, and its commands as a user who cannot touch it. What the service does not
limit itself, the warden keeps: time, CPU, memory (by looking), processes (as root), the size of a file, output.
`files`, and `disk` as a sum, are not kept.
"""

from __future__ import annotations

import asyncio
import math
import shlex
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

from envs.errors import ConfigError, InfrastructureError
from envs.sandbox.base import Limits
from envs.sandbox.warded import WARDEN, warden_limits

FOLDER = "/tmp/work"
_USER = 1000

Made = TypeVar("Made")


def client_of(service: str, module: str, extra: str) -> Any:
    """The service's own client.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{service} sandboxes need its client, which cannot be imported ({error}): pip install 'upswing[{extra}]'"
        ) from error


def warden_argv(limits: Limits, python: str, *, text: bool = False) -> list[str]:
    """The command that becomes a warden over there."""
    told = warden_limits(limits, text=text, folder=FOLDER, user=_USER)
    return [python, "-I", "-S", "-c", WARDEN.read_text("utf-8"), told]


def warden_command(limits: Limits, python: str, *, text: bool = False) -> str:
    """The same for a shell."""
    return f"exec {shlex.join(warden_argv(limits, python, text=text))}"


@contextmanager
def failures(doing: str, *config: type[BaseException]) -> Iterator[None]:
    """Whatever a client raises becomes one of our errors: `config` what its user has to mend, the rest may pass."""
    try:
        yield
    except (ConfigError, InfrastructureError):
        raise
    except config as error:
        raise ConfigError(f"{doing}: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise InfrastructureError(f"{doing}: {type(error).__name__}: {error}") from error


async def made(make: Awaitable[Made], remove: Callable[[Made], Awaitable[object]]) -> Made:
    """What is being made; if we are cancelled meanwhile, it is removed as soon as it is there: nobody else knows it."""
    making = asyncio.ensure_future(make)
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        await asyncio.wait([making])
        if making.exception() is None:
            await remove(making.result())
        raise


def gigabytes(size: int) -> int:
    """Whole ones, at least one."""
    return max(1, math.ceil(size / 2**30))


def minutes(seconds: float) -> int:
    """Whole ones, at least one."""
    return max(1, math.ceil(seconds / 60))
