"""Several evaluations from one command line: suites, and settings with several values side by side."""

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from envs.errors import ConfigError, unknown_name
from rl.cli import conf, overrides


def evaluations(settings: Sequence[str], folder: Path | None = None) -> list[list[str]]:
    """The settings of each evaluation that a command line asks for: one for every evaluation of its suite, and for
    every combination of the values that are separated by commas.

    Args:
        settings: `suite=NAME`, `env=a,b`, `client.model=x,y`, and settings with a single value.
        folder: with choices of one's own: `suite/NAME.yaml`.

    Raises:
        ConfigError: for a suite that does not exist or cannot be read.
    """
    suites = [line.removeprefix("suite=") for line in settings if line.startswith("suite=")]
    rest = [line for line in settings if not line.startswith("suite=")]
    if len(suites) > 1:
        raise ConfigError(f"{len(suites)} suites were named; expected one, for example suite={suites[0]}")
    members = read_suite(suites[0], folder) if suites else [[]]
    return [[*member, *combination] for member in members for combination in combinations(rest)]


def combinations(settings: Sequence[str]) -> list[list[str]]:
    """Every combination of settings with several values, in the order they are written."""
    choices = []
    for line, override in zip(settings, overrides.parse(settings), strict=True):
        if override.is_sweep_override():
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([line])
    return [list(combination) for combination in itertools.product(*choices)]


def read_suite(name: str, folder: Path | None = None) -> list[list[str]]:
    """The settings of each evaluation of a suite.

    Raises:
        ConfigError: if there is none of this name, or its file has another form.
    """
    places = [place / conf.SUITES for place in (folder, conf.CONF) if place is not None]
    path = next((place / f"{name}.yaml" for place in places if (place / f"{name}.yaml").is_file()), None)
    if path is None:
        known = [file.stem for place in places for file in place.glob("*.yaml")]
        raise unknown_name("suite", name, known, "a suite is a file suite/NAME.yaml in conf/ or --config-dir")
    found = yaml.safe_load(path.read_text("utf-8"))
    lines = found.get("evals") if isinstance(found, dict) else None
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"{path}: expected `evals:` with a list of settings, like `- env=wordle tasks=32`")
    return [shlex.split(line) for line in lines]
