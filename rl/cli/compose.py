"""From `conf/` and the command line to a plain dataclass, by way of Hydra."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from envs.errors import ConfigError
from rl.cli import overrides
from rl.cli.conf import CONF
from rl.cli.explain import explained
from rl.config import ChatConfig, EvalRunConfig, ParityConfig, ServeConfig, SftConfig, TrainConfig

T = TypeVar("T")

SCHEMAS: dict[str, type[Any]] = {
    "train": TrainConfig,
    "sft": SftConfig,
    "eval": EvalRunConfig,
    "chat": ChatConfig,
    "serve": ServeConfig,
    "parity": ParityConfig,
}
"""The root configs and the dataclass that each must fit."""


class Composed(NamedTuple, Generic[T]):
    """A config as a plain dataclass, and the YAML text that says the same."""

    config: T
    text: str


def compose(verb: str, settings: Sequence[str]) -> Composed[Any]:
    """The config of one run.

    Args:
        verb: a root config: "train", "sft", "eval" or "chat".
        settings: the settings of the command line, in Hydra's grammar.

    Raises:
        ConfigError: an unknown name or key, a value of another type, or an override that cannot be read.
    """
    register(verb)
    settings = as_trained(verb, settings)
    with explained(verb, SCHEMAS), hydra.initialize_config_dir(str(CONF), job_name=verb, version_base="1.3"):
        return convert(verb, with_named(lambda: hydra.compose(verb, settings)))


def sweep_directory(verb: str, shared: Sequence[str]) -> Path:
    """Where a sweep goes: `hydra.sweep.dir`, by default a new folder under runs/sweeps/.

    Args:
        verb: a root config.
        shared: the settings that all runs of the sweep share.

    Raises:
        ConfigError: if the config does not fit.
    """
    register(verb)
    with explained(verb, SCHEMAS), hydra.initialize_config_dir(str(CONF), job_name=verb, version_base="1.3"):
        composed = with_named(lambda: hydra.compose(verb, list(shared), return_hydra_config=True))
        return Path(composed.hydra.sweep.dir)


def convert(verb: str, composed: DictConfig) -> Composed[Any]:
    """Fit what Hydra composed into the dataclass of its verb.

    Raises:
        ConfigError: if it does not fit: `+key=…` adds no key that does not exist.
    """
    with explained(verb, SCHEMAS):
        fitted = OmegaConf.merge(OmegaConf.structured(SCHEMAS[verb]), OmegaConf.to_container(composed))
        return Composed(OmegaConf.to_object(fitted), OmegaConf.to_yaml(_told(fitted)))


def _told(config: Any) -> dict[str, Any]:
    """A config without the numbers that the chosen optimizer does not have: their null tells nobody anything."""
    told = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    if "optimizer" in told:
        told["optimizer"] = {key: value for key, value in told["optimizer"].items() if value is not None}
    return told


def with_named(run: Callable[[], T]) -> T:
    """Call `run`, giving each environment and each model that it misses in `conf` an option of its own.

    So `env=` takes whatever names an environment, also a folder, a package or an installed plug-in, and `model=` takes
    the path of a checkpoint.
    """
    made = set()
    while True:
        try:
            return run()
        except MissingConfigException as error:
            group, _, name = (error.missing_cfg_file or "").partition("/")
            if group not in FINDERS or (group, name) in made:
                raise
            node = FINDERS[group](name)
            if node is None:
                raise
            _add_choice(group, name, node)
            made.add((group, name))


def _environment(name: str) -> dict[str, str]:
    """The section `env` for what names an environment.

    Raises:
        ConfigError: if there is none.
    """
    from envs.resolve import find_environment

    find_environment(name)
    return {"name": name}


def as_trained(verb: str, settings: Sequence[str]) -> list[str]:
    """The settings, with the environment of the run that `run=` names, where they choose none, and with its
    `sampling.max_tokens`: a policy is asked what it was trained for. Settings like `env.max_turns=4` change that.

    Raises:
        ConfigError: for runs that differ in it: an environment has to be chosen.
    """
    found = {override.key_or_group: override for override in overrides.parse(settings)}
    fields = SCHEMAS[verb].__dataclass_fields__
    if "env" not in fields or "run" not in found or "env" in found:
        return list(settings)
    run = found["run"]
    named = [str(each) for each in run.sweep_string_iterator()] if run.is_sweep_override() else [str(run.value())]
    files = [Path(name.strip("'\"")) / "config.yaml" for name in named]
    configs = [yaml.safe_load(file.read_text("utf-8")) for file in files if file.is_file()]
    known = [(config.get("env"), config.get("sampling", {}).get("max_tokens")) for config in configs]
    if not known or known[0][0] is None:
        return list(settings)  # whoever loads the run says what is missing
    if any(each != known[0] for each in known):
        raise ConfigError(
            f"the runs {', '.join(named)} have different environments, or sampling.max_tokens; choose one with env=NAME"
        )
    environment, most = known[0]
    _add_choice("env", _OF_RUN, environment)
    length = [f"sampling.max_tokens={most}"] if "sampling" in fields and most is not None else []
    return [f"env={_OF_RUN}", *length, *settings]


_OF_RUN = "of_run"


def _checkpoint(name: str) -> dict[str, str] | None:
    """The section `model` for the path of a checkpoint; None for what is no path."""
    if not name.startswith("package:") and "/" not in name and not name.endswith(".gguf"):
        return None
    return {"source": name}


FINDERS: dict[str, Callable[[str], dict[str, str] | None]] = {"env": _environment, "model": _checkpoint}
"""Groups that take more than the files in `conf`: a name -> what such a file would say."""


def _add_choice(group: str, name: str, node: dict[str, str]) -> None:
    *folders, file = name.split("/")
    ConfigStore.instance().store(file, node, group="/".join([group, *filter(None, folders)]), package=group)


def register(verb: str) -> None:
    """Make the dataclass of a verb known to Hydra, so that it checks keys and types against it."""
    schema = OmegaConf.structured(SCHEMAS[verb])
    _open_dictionaries(schema)
    ConfigStore.instance().store(f"{verb}_schema", schema)


def _open_dictionaries(node: DictConfig) -> None:
    """Let the command line add keys to dictionaries (`env`, `algorithm` …): whoever takes them checks them."""
    if OmegaConf.get_type(node) is dict:
        OmegaConf.set_struct(node, False)
    for key in node:
        child = node[key]
        if isinstance(child, DictConfig):
            _open_dictionaries(child)
