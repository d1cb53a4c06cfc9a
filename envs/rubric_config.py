"""A rubric changed from outside: other weights and further metrics, without touching the environment's code."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from envs.environment import Environment
from envs.errors import ConfigError, unknown_name
from envs.metrics import METRICS


def adjusted(
    environment: Environment, *, weights: Mapping[str, float] = MappingProxyType({}), metrics: Sequence[str] = ()
) -> Environment:
    """The environment with some weights changed and some metrics added.

        env.rubric.weights.brief=0.1 env.rubric.metrics=[turns,my_metrics.py:politeness]

    Args:
        environment: any.
        weights: by the names of its rubric; also of the metrics that are added.
        metrics: names in `envs.metrics`, or `module:function`, `file.py:function`. Their weight is 0.

    Raises:
        ConfigError: an unknown name, or a function that cannot be imported.
    """
    rubric = environment.rubric
    added = {metric(name): 0.0 for name in metrics}
    if added:
        rubric = rubric.extend(added)
    return replace(environment, rubric=rubric.reweight(weights))


def metric(name: str) -> Callable[..., Any]:
    """The function that a config names.

    Raises:
        ConfigError: if there is none.
    """
    place, _, function = name.rpartition(":")
    if not place:
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS, "your own is named module:function or file.py:function")
        return METRICS[name]
    try:
        module = _file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (ImportError, OSError) as error:
        raise ConfigError(f"metric '{name}': cannot import {place} ({type(error).__name__}: {error})") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"metric '{name}': {place} has no function '{function}'")
    return found


def _file(path: Path) -> Any:
    name = f"upswing_metrics_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
