"""A first look at the settings of the command line, for mistakes that Hydra would meet too late or explain badly."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from envs.errors import ConfigError, unknown_name
from rl.cli import conf
from rl.cli.explain import unreadable


def check(overrides: Sequence[str], *, multirun: bool) -> None:
    """Check that every override can be read and means what it says.

    Raises:
        ConfigError: if one cannot be read, lists several values outside a sweep, or chooses from a group by something
            that is no name.
    """
    for override in parse(overrides):
        line = override.input_line
        if override.is_sweep_override():
            if not multirun:
                raise ConfigError(
                    f"'{line}' lists several values; add -m to run them all, or write a list as [a,b] "
                    f"or a text as '{override.get_key_element()}=\"a,b\"'"
                )
        elif override.key_or_group in conf.groups() and not isinstance(override.value(), str | dict):
            group = override.key_or_group
            raise unknown_name(group, override.get_value_string(), conf.options(group))


def without_end_slashes(overrides: Sequence[str]) -> list[str]:
    """`env=folder/`, as shells complete it, as `env=folder`: no choice of a group ends in a slash."""
    return [re.sub(r"/+(?=,|$)", "", line) if line.startswith("env=") else line for line in overrides]


def search_in(folder: str) -> str:
    """The override that makes the choices in a folder known, beside those of `conf/`.

    Raises:
        ConfigError: if there is no such folder.
    """
    if not Path(folder).is_dir():
        raise ConfigError(f"--config-dir {folder} is no folder; expected one with groups in it, like experiment/")
    return f"hydra.searchpath=['file://{Path(folder).absolute()}']"


def parse(overrides: Sequence[str]) -> list[Override]:
    """Read the overrides by Hydra's grammar.

    Raises:
        ConfigError: naming the one that cannot be read.
    """
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise unreadable(error) from error


def fixed(overrides: Sequence[str]) -> list[str]:
    """The overrides that all runs of a sweep share."""
    return [
        line for line, override in zip(overrides, parse(overrides), strict=True) if not override.is_sweep_override()
    ]
