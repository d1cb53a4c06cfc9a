"""What the verbs that run experiments have in common: flags, overrides, one run or many."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from envs.errors import ConfigError

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
    if flags.help:
        from rl.cli.help import experiment_help

        print(experiment_help(verb), end="")
        return 0

    from rl.cli import overrides

    settings = overrides.without_end_slashes(flags.overrides)
    if flags.config_dir is not None:
        settings.append(overrides.search_in(flags.config_dir))
    overrides.check(settings, multirun=flags.multirun)
    if flags.multirun:
        from rl.cli.sweep import sweep

        return sweep(verb, settings)

    from rl.cli.compose import compose

    config, text = compose(verb, settings)
    if flags.cfg:
        print(text, end="")
    else:
        experiment(verb)(config, text)
    return 0


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
