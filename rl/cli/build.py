"""From a config to values: the environment, the model, the algorithm. Below here nothing knows a config object."""

import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from envs.clients.base import Client
from envs.environment import Environment
from envs.errors import ConfigError, unknown_name
from envs.render import ByteRenderer, Renderer
from envs.resolve import load_environment
from envs.signature import bind
from rl.algorithms import ALGORITHMS, Algorithm
from rl.checkpoint import load_params
from rl.cli.adapter import model_settings, with_adapter
from rl.config import ClientConfig, EvalRunConfig, HardwareConfig, InferenceConfig, ModelConfig, OptimizerConfig
from rl.inference.jax_engine import JaxEngine
from rl.models import FAMILIES
from rl.models.base import DecoderConfig, Model, Params
from rl.models.lora import dense
from rl.parallel.mesh import Rules, batch_constraint, make_mesh, parameter_shardings
from rl.parallel.platform import use_platform
from rl.rollout.client import EngineClient
from rl.trainer.optimizer import SCHEDULES, Optimizer, adamw
from rl.types import Batch

ENGINES = ("jax",)
CLIENTS = ("engine", "openai")


class Policy(NamedTuple):
    """A model on its devices.

    Attributes:
        model: the decoder.
        renderer: its chat format.
        params: its weights, laid out over `mesh`, perhaps with an adapter beside them.
        constrain: pins a batch to `mesh`.
        remat: recompute activations in the backward pass.
    """

    model: Model
    renderer: Renderer
    params: Params
    mesh: Mesh
    constrain: Callable[[Batch], Batch]
    remat: bool


def make_environment(settings: Mapping[str, Any]) -> Environment:
    """The environment that `env.name` names, with the other keys as its arguments."""
    name, arguments = _name_and_arguments("env", settings)
    return load_environment(name, **arguments)


def make_algorithm(settings: Mapping[str, Any]) -> Algorithm:
    """The algorithm that `algorithm.name` names, with the other keys as its arguments."""
    name, arguments = _name_and_arguments("algorithm", settings)
    if name not in ALGORITHMS:
        raise unknown_name("algorithm", name, ALGORITHMS)
    checked = bind(ALGORITHMS[name], arguments, kind=f"algorithm '{name}'")
    with _as_config_error("algorithm"):
        return ALGORITHMS[name](**checked)


def make_optimizer(config: OptimizerConfig, steps: int) -> Optimizer:
    """AdamW with the config's numbers, scheduled over `steps` updates."""
    if config.schedule not in SCHEDULES:
        raise unknown_name("optimizer.schedule", config.schedule, SCHEDULES)
    return adamw(**{f.name: getattr(config, f.name) for f in fields(config)}, steps=steps)


def make_policy(config: ModelConfig, hardware: HardwareConfig, seed: int) -> Policy:
    """The model with fresh weights, or with those of the run that `model.checkpoint` names."""
    use_platform(hardware.platform, hardware.mesh)
    if config.name not in FAMILIES:
        raise unknown_name("model.name", config.name, FAMILIES)
    renderer = ByteRenderer()
    with _as_config_error("model"):
        shape = _fresh_shape(config, renderer.vocab_size)
    model = FAMILIES[config.name].build(replace(shape, compute_dtype=hardware.compute_dtype))
    mesh = make_mesh(hardware.mesh)
    rules: Rules = hardware.rules
    shardings = parameter_shardings(mesh, model.axes, rules)
    params = jax.jit(model.init, out_shardings=shardings)(jax.random.key(seed))
    if config.checkpoint is not None:
        params = load_params(Path(config.checkpoint), params)
    params = with_adapter(config, model, params, mesh, rules, seed)
    return Policy(model, renderer, params, mesh, batch_constraint(mesh, rules), hardware.remat)


def _fresh_shape(config: ModelConfig, vocab_size: int) -> DecoderConfig:
    """The shape of a model without a checkpoint: what its family makes of a `config.json` with these sizes."""
    return FAMILIES[config.name].read_config(
        {
            "vocab_size": vocab_size,
            "num_hidden_layers": config.layers,
            "hidden_size": config.width,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "intermediate_size": config.ffn,
            "max_position_embeddings": config.context,
            "rope_theta": config.rope_theta,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            **config.options,
        }
    )


def make_engine(config: InferenceConfig, policy: Policy) -> JaxEngine:
    """The engine that samples from a policy."""
    if config.name not in ENGINES:
        raise unknown_name("inference.name", config.name, ENGINES)
    with _as_config_error("inference"):
        return JaxEngine(
            policy.model,
            dense(policy.params),
            slots=config.slots,
            context=config.context,
            tokens_per_dispatch=config.tokens_per_dispatch,
            text_of=policy.renderer.text,
        )


async def make_client(config: EvalRunConfig) -> tuple[Client, str]:
    """Who answers in `rl eval`, and how to call it in a table."""
    if config.client.name not in CLIENTS:
        raise unknown_name("client.name", config.client.name, CLIENTS)
    if config.client.name == "openai":
        return await make_openai_client(config.client)
    model = model_of_run(Path(config.run)) if config.run is not None else config.model
    policy = make_policy(model, config.hardware, config.seed)
    return EngineClient(
        make_engine(config.inference, policy), policy.renderer
    ), config.run or f"{model.name}, untrained"


def model_of_run(run: Path) -> ModelConfig:
    """The model of a run, with its newest weights.

    Raises:
        ConfigError: when the folder is no run.
    """
    config = model_settings(run)
    if config.lora.rank or config.lora.adapter is not None:
        return replace(config, lora=replace(config.lora, adapter=str(run)))
    return replace(config, checkpoint=str(run))


async def make_openai_client(config: ClientConfig) -> tuple[Client, str]:
    """A client of the server that `client.base_url` names, which was seen to answer, and the model's name there."""
    from envs.clients.openai import OpenAIClient

    if not config.base_url or not config.model:
        raise ConfigError(
            "client=openai needs a server and a model: client.base_url=http://localhost:8000/v1 client.model=NAME; "
            f"found client.base_url={config.base_url}, client.model={config.model}"
        )
    key = None
    if config.api_key_env is not None:
        key = os.environ.get(config.api_key_env)
        if not key:
            raise ConfigError(f"client.api_key_env names {config.api_key_env}, but that variable is not set")
    client = OpenAIClient(
        config.base_url,
        config.model,
        api_key=key,
        timeout=config.timeout,
        retries=config.retries,
        max_connections=config.concurrency,
    )
    try:
        served = await client.check()
        if served and config.model not in served:
            raise unknown_name(f"model at {config.base_url}", config.model, served, "set client.model")
    except BaseException:
        await client.close()
        raise
    return client, config.model


def _name_and_arguments(section: str, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    arguments = dict(settings)
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{section}.name is {name!r}; expected a name, for example {section}=NAME")
    return name, arguments


class _as_config_error:
    """Turns a `ValueError` of a constructor into a `ConfigError` that says which section of the config it is about."""

    def __init__(self, section: str) -> None:
        self._section = section

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError):
            raise ConfigError(f"{self._section}: {error}") from error
