"""From a config to values: the environment, the model, the algorithm. Below here nothing knows a config object."""

import asyncio
import importlib
import inspect
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from envs.clients.base import Client
from envs.clients.openai import OpenAIClient
from envs.environment import Environment
from envs.errors import ConfigError, unknown_name
from envs.render import ByteRenderer, Renderer
from envs.render.subword import Merges, learn_vocabulary
from envs.resolve import load_environment
from envs.seeds import derive_seed
from envs.signature import bind
from rl.algorithms import ALGORITHMS, Algorithm
from rl.algorithms.compose import TABLES, specialised
from rl.algorithms.pairs import PREFERENCES
from rl.checkpoint import load_params
from rl.cli.adapter import with_adapter
from rl.cli.engine import engine_config, name_and_arguments, open_engine
from rl.cli.model import Origin, abstract_params, as_config_error, fresh_params, model_name, model_of_run, open_model
from rl.config import (
    ClientConfig,
    EvalRunConfig,
    HardwareConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    WarmStartConfig,
)
from rl.inference.teacher import ServedTeacher
from rl.models.base import Model, Params
from rl.models.matrices import matrices
from rl.parallel.mesh import Rules, batch_constraint, make_mesh, parameter_shardings
from rl.parallel.platform import use_platform
from rl.rollout.client import EngineClient
from rl.rollout.demonstrations import Demonstrations, demonstrated_texts
from rl.rollout.schedule import Schedule
from rl.rollout.select import Selection, selection
from rl.trainer.optimizer import SCHEDULES, Optimizer, scheduled
from rl.trainer.rules import RULES
from rl.types import Batch
from rl.weights.load import load

CLIENTS = ("engine", "openai")


class Policy(NamedTuple):
    """A model on its devices.

    Attributes:
        model: the decoder.
        renderer: its chat format.
        params: its weights, laid out over `mesh`, perhaps with an adapter beside them.
        constrain: pins a batch to `mesh`.
        remat: recompute activations in the backward pass.
        origin: what the config made of it before it had devices.
    """

    model: Model
    renderer: Renderer
    params: Params
    mesh: Mesh
    constrain: Callable[[Batch], Batch]
    remat: bool
    origin: Origin


def make_teacher(name: str | None, policy: Policy, hardware: HardwareConfig) -> Policy | ServedTeacher | None:
    """The model that a policy learns from, if there is one: that of a run, a checkpoint, or one that is served.

    Raises:
        ConfigError: when it reads other tokens than the policy; one that is served is asked by `ServedTeacher.check`.
    """
    if name is None:
        return None
    if name.startswith(("http://", "https://")):
        return ServedTeacher(name, policy.model.config.vocab_size)
    of_run = (Path(name) / "run.json").is_file()
    teacher = make_policy(model_of_run(Path(name)) if of_run else ModelConfig(source=name), hardware, seed=0)
    ours, theirs = (p.model.config.vocab_size for p in (policy, teacher))
    if ours != theirs:
        raise ConfigError(
            f"the teacher {name} has {theirs} tokens, the policy {ours}; tokens are what it is asked about: take one "
            "with the same tokenizer"
        )
    pieces, others = (p.renderer.merges if isinstance(p.renderer, ByteRenderer) else () for p in (policy, teacher))
    if pieces != others:
        raise ConfigError(
            f"the teacher {name} learned another vocabulary than the policy; let both begin from one run of "
            f"`rl sft model.vocabulary={ours}`, with model.checkpoint=RUN"
        )
    return teacher


def make_preference(settings: Mapping[str, Any]) -> Algorithm:
    """The algorithm that `preference.name` names, with the other keys as its arguments."""
    name, arguments = name_and_arguments("preference", settings)
    if name not in PREFERENCES:
        raise unknown_name("preference", name, PREFERENCES)
    return PREFERENCES[name](**bind(PREFERENCES[name], arguments, kind=f"preference '{name}'"))


def make_selection(settings: Mapping[str, Any]) -> Selection:
    """`rl.rollout.select.selection` of these settings; gate and pool may also be `module:function`."""
    parts = {kind: imported(settings[kind], f"selection.{kind}") for kind in ("gate", "pool") if kind in settings}
    named = {kind: part for kind, part in parts.items() if isinstance(part, str)}
    own = {kind: part for kind, part in parts.items() if kind not in named}
    others = {key: value for key, value in settings.items() if key not in own}
    with as_config_error("selection"):
        return selection(**bind(selection, others, kind="selection"), **own)


def make_mix(settings: Mapping[str, Any], seed: int) -> list[Demonstrations]:
    """What `mix` puts beside the rollouts: by name, a `MixConfig`."""
    result = []
    for name, each in settings.items():
        kind = f"mix '{name}'"
        config = MixConfig(**bind(MixConfig, each, kind=kind))
        weights = {"ce": config.ce, "ref_kl": config.ref_kl}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ConfigError(f"{kind}: ce={config.ce:g}, ref_kl={config.ref_kl:g}; expected weights, one above 0")
        environment = make_environment({"name": name, **config.env})
        tasks, own = environment.training_tasks().head(config.demonstrations), derive_seed(seed, "mix", name)
        result.append(Demonstrations(environment, Schedule(tasks, config.batch, own), own, weights))
    return result


def make_environment(settings: Mapping[str, Any]) -> Environment:
    """The environment that `env.name` names, with the other keys as its arguments."""
    name, arguments = name_and_arguments("env", settings)
    return load_environment(name, **arguments)


def make_warm_environment(settings: Mapping[str, Any], other: Mapping[str, Any]) -> Environment:
    """The environment of a warm start: that of the run with `other` settings, or the one that these name."""
    return make_environment(other if "name" in other else {**settings, **other})


def make_algorithm(settings: Mapping[str, Any]) -> Algorithm:
    """The algorithm that `algorithm.name` names, with the other keys as its arguments.

    A part of it may also be `module:function`, imported from wherever Python finds it.
    """
    name, arguments = name_and_arguments("algorithm", settings)
    if name not in ALGORITHMS:
        raise unknown_name("algorithm", name, ALGORITHMS)
    parts = {kind: imported(arguments[kind], f"algorithm.{kind}") for kind in TABLES if kind in arguments}
    with as_config_error("algorithm"):
        factory, taken = specialised(ALGORITHMS[name], {**arguments, **parts})
    others = {key: value for key, value in taken.items() if key not in parts}
    checked = bind(factory, others, kind=f"algorithm '{name}'")
    with as_config_error("algorithm"):
        return factory(**checked, **parts)


def imported(part: Any, key: str) -> Any:
    """A part of an algorithm, with `module:function` replaced by that function.

    Raises:
        ConfigError: if there is no such module or no such function.
    """
    if isinstance(part, list | tuple):
        return [imported(each, key) for each in part]
    if not isinstance(part, str) or ":" not in part:
        return part
    module, _, function = part.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{key} is '{part}', but {error}; expected a name, or MODULE:FUNCTION that can be imported"
        ) from error


def make_optimizer(config: OptimizerConfig, steps: int, model: Model) -> Optimizer:
    """The optimizer that `optimizer.name` names for a model's parameters, scheduled over `steps` updates."""
    if config.name not in RULES:
        raise unknown_name("optimizer.name", config.name, RULES)
    if config.schedule not in SCHEDULES:
        raise unknown_name("optimizer.schedule", config.schedule, SCHEDULES)
    numbers = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "name"}
    shared = {name: numbers.pop(name) for name in list(numbers) if name in inspect.signature(scheduled).parameters}
    own = {name: value for name, value in numbers.items() if value is not None}
    if config.name == "muon":
        own["matrices"] = matrices(model)
    checked = bind(RULES[config.name], own, kind=f"optimizer '{config.name}'")
    with as_config_error("optimizer"):
        return scheduled(RULES[config.name](**checked), **shared, steps=steps)


def make_warm_optimizer(config: WarmStartConfig, model: Model) -> Optimizer:
    """That of a warm start: its rate rises for 20 updates, then falls to 0 in a straight line."""
    if config.optimizer not in RULES:
        raise unknown_name("warm_start.optimizer", config.optimizer, RULES)
    rate = OptimizerConfig(config.optimizer, config.lr, schedule="linear", warmup=20)
    return make_optimizer(rate, config.steps, model)


def make_vocabulary(config: ModelConfig, environment: Environment) -> Merges:
    """The vocabulary of weights that begin anew, where the config asks for one: learned from demonstrations."""
    if config.vocabulary is None or config.checkpoint is not None or config.source is not None:
        return ()
    with as_config_error("model.vocabulary"):
        return learn_vocabulary(asyncio.run(demonstrated_texts(environment)), config.vocabulary)


def make_policy(config: ModelConfig, hardware: HardwareConfig, seed: int, vocabulary: Merges = ()) -> Policy:
    """The model with fresh weights, those of a checkpoint, or those of the run that `model.checkpoint` names."""
    use_platform(hardware.platform, hardware.mesh)
    origin = open_model(config, vocabulary)
    model = origin.family.build(replace(origin.shape, compute_dtype=hardware.compute_dtype))
    mesh = make_mesh(hardware.mesh)
    rules: Rules = hardware.rules
    shardings = parameter_shardings(mesh, model.axes, rules)
    if config.checkpoint is not None:
        params = load_params(Path(config.checkpoint), abstract_params(model, shardings, config.dtype))
    elif origin.source is not None:
        params = load(origin.source, origin.family, model, shardings, config.dtype)
    else:
        params = fresh_params(model, shardings, config.dtype, seed)
    params = with_adapter(config, origin.family, model, params, mesh, rules, seed)
    return Policy(model, origin.renderer, params, mesh, batch_constraint(mesh, rules), hardware.remat, origin)


@asynccontextmanager
async def open_client(
    config: EvalRunConfig, folder: Path, report: Callable[[str], None]
) -> AsyncIterator[tuple[Client, str]]:
    """Who answers in `rl eval`, and how to call it in a table; as `open_engine`."""
    if config.client.name not in CLIENTS:
        raise unknown_name("client.name", config.client.name, CLIENTS)
    if config.client.name == "openai":
        client, name = await make_openai_client(config.client)
        try:
            yield client, name
        finally:
            await client.close()
        return
    inference = engine_config(config.inference)
    model = model_of_run(Path(config.run)) if config.run is not None else config.model
    policy = make_policy(model, config.hardware, config.seed)
    async with open_engine(inference, policy, folder, report) as engine:
        yield EngineClient(engine, policy.renderer), config.run or model_name(model)


async def make_openai_client(config: ClientConfig) -> tuple[OpenAIClient, str]:
    """A client of the server that `client.base_url` names, which was seen to answer, and the model's name there."""
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
