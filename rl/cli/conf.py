"""What there is in `conf/`, found by listing: its groups, their options and what each says about itself."""

import re
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).parents[2] / "conf"
"""The folder of configs: beside the packages, in a clone and in an installation alike."""


def roots() -> list[str]:
    """The names of the root configs: one for each verb that runs an experiment."""
    return sorted(file.stem for file in CONF.glob("*.yaml"))


SUITES = "suite"
"""The folder of lists of evaluations: no group, since they are no part of a config (see `rl.cli.suite`)."""


def groups() -> list[str]:
    """The groups that choices are made from; Hydra's own are left out."""
    return sorted(folder.name for folder in CONF.iterdir() if folder.name != SUITES and any(folder.glob("*.yaml")))


def options(group: str) -> list[str]:
    """The choices that a group has."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def settings(group: str, option: str) -> dict[str, Any]:
    """What an option's file sets; group "" has the root configs."""
    found: dict[str, Any] = yaml.safe_load((CONF / group / f"{option}.yaml").read_text("utf-8"))
    return found


def choice(group: str, option: str) -> dict[str, Any] | None:
    """What choosing an option of a group sets; None if it is none. Whatever names an environment is a choice."""
    if re.fullmatch(r"\w+", option) and group in groups() and option in options(group):
        return settings(group, option)
    return {"name": option} if group == "env" else None


def meanings(group: str, option: str) -> dict[str, str]:
    """The comments behind the settings of an option's file: what each is, with its unit."""
    text = (CONF / group / f"{option}.yaml").read_text("utf-8")
    return dict(re.findall(r"^(\w+): .*? # (.+)$", text, re.MULTILINE))


def headline(group: str, option: str) -> str:
    """The first comment of an option's file: what it is, in a line."""
    lines = (CONF / group / f"{option}.yaml").read_text("utf-8").splitlines()
    comments = (line[1:].strip() for line in lines if line.startswith("#") and not line.startswith("# @package"))
    return next(comments, "")
