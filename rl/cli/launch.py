"""What the verbs that run experiments have in common: flags, overrides, one run or many."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from envs.errors import ConfigError
from rl.cli import conf

if TYPE_CHECKING:
    from rl.cli.compose import Composed

FLAGS = """\
  -m, --multirun   run every combination of the values that are separated by commas
  --cfg            print the config instead of running it
  --config-dir DIR a folder with choices of your own, laid out like conf/
  -h, --help       this page
"""


def launch(verb: str, arguments: Sequence[str]) -> int:
    """Compose the config and run it, sweep over it, print it, or explain it.

    Args:
        verb: "train", "sft" or "eval".
        arguments: what follows the verb: flags, and settings as KEY=VALUE.

    Returns:
        The exit code.
    """
    flags = parse(verb, arguments)
    if flags.multirun and not flags.help:
        from rl.cli.sweep import sweep

        return sweep(verb, settings_of(flags))
    composed = composed_or_shown(verb, flags)
    if composed is not None:
        experiment(verb)(*composed)
    return 0


def composed_or_shown(verb: str, flags: argparse.Namespace) -> "Composed[Any] | None":
    """The config that the command line asks for; None if it only asked to see the config or the help page."""
    if flags.help:
        from rl.cli.help import experiment_help

        print(experiment_help(verb), end="")
        return None

    from rl.cli.compose import compose

    composed = compose(verb, settings_of(flags))
    if flags.cfg:
        print(annotated(composed.text), end="")
        return None
    return composed


def annotated(text: str) -> str:
    """A composed config with what each setting of its algorithm and its engine is, as comments."""
    for group in ("algorithm", "inference"):
        section = re.search(rf"^{group}:\n((?:  .*\n)*)", text, re.MULTILINE)
        name = re.search(r"^  name: (\w+)$", section[1], re.MULTILINE) if section else None
        if section is not None and name is not None and name[1] in conf.options(group):
            text = text.replace(section[1], _annotated(section[1], conf.meanings(group, name[1])))
    return text


def _annotated(section: str, means: Mapping[str, str]) -> str:
    def line(setting: re.Match[str]) -> str:
        return f"{setting[0]} # {means[setting[1]]}" if setting[1] in means else setting[0]

    return re.sub(r"^  (\w+): .*$", line, section, flags=re.MULTILINE)


def settings_of(flags: argparse.Namespace) -> list[str]:
    """The overrides of a command line, looked over.

    Raises:
        ConfigError: see `rl.cli.overrides.check`.
    """
    from rl.cli import overrides

    settings = overrides.without_end_slashes(flags.overrides)
    if flags.config_dir is not None:
        settings.append(overrides.search_in(flags.config_dir))
    overrides.check(settings, multirun=flags.multirun)
    return settings


def experiment(verb: str) -> Callable[[Any, str], Path]:
    """The function that runs a composed config and returns its run directory. Imports jax."""
    from rl.cli import experiments

    verbs: dict[str, Callable[[Any, str], Path]] = {
        "train": experiments.train,
        "sft": experiments.sft,
        "eval": experiments.evaluate,
    }
    return verbs[verb]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def parse(verb: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Tell flags from settings, in any order.

    Raises:
        ConfigError: for a flag that does not exist.
    """
    parser = Parser(prog=f"rl {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", nargs="?", choices=["job"], const="job")
    parser.add_argument("--config-dir")
    flags, extra = parser.parse_known_intermixed_args(arguments)
    if extra:
        raise ConfigError(
            f"unknown flag '{extra[0]}'; settings are written KEY=VALUE without dashes, for example seed=1; "
            f"see rl {verb} --help"
        )
    return flags
