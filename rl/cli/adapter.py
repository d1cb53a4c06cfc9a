"""From `model.lora` to parameters with an adapter beside them."""

from pathlib import Path
from typing import Any

import jax
import yaml
from jax.sharding import Mesh

from envs.errors import ConfigError, unknown_name
from envs.seeds import derive_seed
from rl.checkpoint import load_params
from rl.config import LoraConfig, ModelConfig
from rl.models.base import Model, Params
from rl.models.family import Family
from rl.models.lora import adapt, lora
from rl.models.quantize import KINDS, quantize
from rl.parallel.mesh import Rules, parameter_shardings
from rl.weights.peft import is_peft, load_adapter, read_settings


def with_adapter(
    config: ModelConfig, family: Family, model: Model, params: Params, mesh: Mesh, rules: Rules, seed: int
) -> Params:
    """The parameters as `model.lora` wants them: an adapter beside them, and themselves perhaps in fewer bits.

    Raises:
        ConfigError: for settings that do not fit the model or each other.
    """
    wanted = adapter_settings(config.lora, family, model)
    if wanted.rank == 0:
        if wanted.quantize is not None:
            raise ConfigError(
                f"model.lora.quantize={wanted.quantize} keeps frozen weights in fewer bits, but without an adapter "
                "all weights are trained; set model.lora.rank=8"
            )
        return params
    if config.checkpoint is None and config.source is None:
        raise ConfigError(
            f"model.lora.rank={wanted.rank} adapts weights that have learnt something, and these are fresh; "
            "name some with model.source or model.checkpoint=RUN, or train all of them with model.lora.rank=0"
        )
    if wanted.quantize is not None and wanted.quantize not in KINDS:
        raise unknown_name("model.lora.quantize", wanted.quantize, KINDS)
    try:
        adapters = lora(model, wanted.rank, wanted.alpha, wanted.targets, root=wanted.rslora)
        base = params if wanted.quantize is None else quantize(model, params, wanted.quantize)
    except ValueError as error:
        raise ConfigError(f"model.lora: {error}") from error
    shardings = parameter_shardings(mesh, adapters.axes, rules)
    adapter = jax.jit(adapters.init, out_shardings=shardings)(jax.random.key(derive_seed(seed, "adapter")))
    if config.lora.adapter is not None:
        adapter = _load(Path(config.lora.adapter), family, model, adapter)
    return adapt(base, adapter, adapters.scale)


def adapter_settings(config: LoraConfig, family: Family, model: Model) -> LoraConfig:
    """`model.lora`, with the rank, alpha, targets … of the adapter to begin with, if one is named.

    Raises:
        ConfigError: when there is no such adapter, or it is of another model.
    """
    if config.adapter is None:
        return config
    folder = Path(config.adapter)
    if is_peft(folder):
        own = read_settings(folder, family, model)
        return LoraConfig(own.rank, own.alpha, own.root, own.targets, config.quantize)
    return adapter_settings(model_settings(folder).lora, family, model)


def _load(folder: Path, family: Family, model: Model, like: Params) -> Params:
    return load_adapter(folder, family, model, like) if is_peft(folder) else load_params(folder, like)


def model_settings(run: Path) -> ModelConfig:
    """The section `model` of a run's config.yaml.

    Raises:
        ConfigError: when the folder is no run.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run} is no run: it has no config.yaml; name a folder that `rl train` or `rl sft` printed")
    settings: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))["model"]
    return ModelConfig(**{**settings, "lora": LoraConfig(**settings["lora"])})
