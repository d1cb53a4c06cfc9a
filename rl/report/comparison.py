"""What sets runs apart: the choices and settings that somebody made, not what follows from them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.report.run import Run
from rl.report.text import flatten

ABSENT = "–"
"""A setting that a run does not have."""

IGNORED = {"run_dir", "resume"}  # they say where a run is, not what it is

Choices = Callable[[str, str], Mapping[str, Any] | None]
"""What a choice sets: the section's name and the choice's, `("algorithm", "gspo")`, to the settings in its file, with
references as `"${sampling.max_tokens}"`; None for what is no choice."""


def no_choices(section: str, name: str) -> None:
    """Nothing is known to follow from anything: every difference counts."""


@dataclass(frozen=True, slots=True)
class Differences:
    """What sets runs apart.

    Attributes:
        keys: the settings in which they differ, dotted; a choice (`algorithm=gspo`) goes by its section's name.
        rows: per run, the values of these.
    """

    keys: Sequence[str]
    rows: Sequence[Mapping[str, str]]


def differences(runs: Sequence[Run], choices: Choices = no_choices) -> Differences:
    """The settings in which runs differ, without those that follow from a choice in which they differ.

    A setting follows if every run has just what its choice says. So a value that somebody set beside the choice, in one
    run, is shown of all of them.

    Args:
        runs: some runs.
        choices: what a choice of a section sets.
    """
    flat = [flatten(run.config) for run in runs]
    names = [key for key in {key: None for config in flat for key in config} if key not in IGNORED]
    differing = [key for key in names if len({_text(config, key) for config in flat}) > 1]
    chosen = {key.removesuffix(".name") for key in differing if key.endswith(".name") and key.count(".") == 1}
    said = {section: [_said(config, section, choices) for config in flat] for section in chosen}
    known = {section: [s for s in found if s is not None] for section, found in said.items() if None not in found}

    def follows(key: str) -> bool:
        section, _, rest = key.partition(".")
        if section not in known or rest == "name":
            return False
        return all(_as_said(config, key, says.get(rest)) for config, says in zip(flat, known[section], strict=True))

    kept = [key for key in differing if not follows(key)]
    shown = {key: key.removesuffix(".name") if key.removesuffix(".name") in known else key for key in kept}
    return Differences(list(shown.values()), [{shown[key]: _text(config, key) for key in kept} for config in flat])


def short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each dotted key, where that is enough to tell them apart."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]


def settings(values: Mapping[str, str]) -> list[str]:
    """`algorithm=gspo`, `lr=0.0003` …, as on the command line; what a run does not have is left out."""
    named = zip(short_names(list(values)), values.values(), strict=True)
    return [f"{name}={value}" for name, value in named if value != ABSENT]


def label(run: Run, values: Mapping[str, str]) -> str:
    """A run in a few words: what sets it apart, or its name."""
    return ", ".join(settings(values)) or run.name


def _said(config: Mapping[str, Any], section: str, choices: Choices) -> dict[str, Any] | None:
    found = choices(section, str(config.get(f"{section}.name")))
    return None if found is None else flatten(found)


def _as_said(config: Mapping[str, Any], key: str, said: Any) -> bool:
    """Whether a setting is what the run's choice says; what it does not mention is null or absent."""
    if isinstance(said, str) and said.startswith("${"):
        said = config.get(said[2:-1])
    value = config.get(key)
    if isinstance(value, float) and isinstance(said, str):
        return _number(said) == value  # YAML takes 3e-4 for a text
    return bool(value == said) or (said is None and value == {})


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _text(config: Mapping[str, Any], key: str) -> str:
    if key not in config:
        return ABSENT
    value = config[key]
    return value if isinstance(value, str) else json.dumps(value, default=str)
