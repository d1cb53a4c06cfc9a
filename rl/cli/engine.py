"""From `inference=NAME` to an engine that samples from a policy, and back to nothing left behind."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from envs.errors import ConfigError, unknown_name
from envs.signature import bind
from rl.cli.model import as_config_error
from rl.config import InferenceConfig, JaxInference, SglangInference
from rl.inference.engine import Engine
from rl.inference.jax_engine import JaxEngine
from rl.models.base import DecoderConfig
from rl.models.lora import dense
from rl.models.replay import expert_layers

if TYPE_CHECKING:
    from rl.cli.build import Policy

ENGINES: dict[str, type[InferenceConfig]] = {"jax": JaxInference, "sglang": SglangInference}

CPU_CACHE = 2 * 2**30
"""Bytes of keys and values that the engine keeps on a CPU, unless `inference.slots` says how many sequences."""


def engine_config(settings: Mapping[str, Any]) -> InferenceConfig:
    """The config of the engine that `inference.name` names.

    Raises:
        ConfigError: for an engine there is none of, a key that another engine has, or a value of another type.
    """
    name, arguments = name_and_arguments("inference", settings)
    if name not in ENGINES:
        raise unknown_name("inference.name", name, ENGINES)
    own = {f.name for f in fields(ENGINES[name])}
    for key in arguments:
        for other in ENGINES:
            if key not in own and key in {f.name for f in fields(ENGINES[other])}:
                raise ConfigError(
                    f"inference.{key} is a key of inference={other}, but the engine is {name}; "
                    f"choose inference={other}, or leave inference.{key} out"
                )
    return ENGINES[name](name, **bind(ENGINES[name], arguments, kind=f"engine '{name}'"))


@asynccontextmanager
async def open_engine(
    config: InferenceConfig,
    policy: "Policy",
    folder: Path,
    report: Callable[[str], None],
    *,
    exact: bool = False,
    tokens_per_dispatch: int = 8,
) -> AsyncIterator[Engine]:
    """The engine that samples from a policy, closed on the way out.

    Args:
        config: which engine.
        policy: its weights are version 0.
        folder: for what an engine leaves beside its samples: logs.
        report: is told, in a sentence, what an engine that takes its time is doing.
        exact: of the engine in this process, where the config leaves it open.
        tokens_per_dispatch: likewise.
    """
    if isinstance(config, SglangInference):
        from rl.cli.sglang import sglang_engine

        async with sglang_engine(config, policy, folder, report) as engine:
            yield engine
        return
    assert isinstance(config, JaxInference)
    inside = make_jax_engine(config, policy, exact=exact, tokens_per_dispatch=tokens_per_dispatch)
    try:
        yield inside
    finally:
        await inside.close()


def make_jax_engine(
    config: JaxInference, policy: "Policy", *, exact: bool = False, tokens_per_dispatch: int = 8
) -> JaxEngine:
    """The engine in this process; the other arguments as for `open_engine`."""
    check_routing(config, policy)
    with as_config_error("inference"):
        return JaxEngine(
            policy.model,
            dense(policy.params),
            slots=config.slots or affordable_slots(policy.model.config, config.context),
            context=config.context,
            tokens_per_dispatch=tokens_per_dispatch
            if config.tokens_per_dispatch is None
            else config.tokens_per_dispatch,
            chunk=config.chunk,
            exact=exact if config.exact is None else config.exact,
            max_waiting=config.max_waiting,
            text_of=policy.renderer.text,
            record_routing=config.routing_replay,
        )


def check_routing(config: InferenceConfig, policy: "Policy") -> None:
    """Refuses the replay of choices that the model does not make.

    Raises:
        ConfigError: naming the setting.
    """
    if isinstance(config, JaxInference) and config.routing_replay and not expert_layers(policy.model):
        raise ConfigError(
            f"inference.routing_replay is true, but the model ({policy.origin.family.name}) has no experts whose "
            "choice could be replayed; leave it out"
        )


def affordable_slots(shape: DecoderConfig, context: int | None) -> int:
    """How many sequences' keys and values fit into what a cache may take: a power of two, at most 256."""
    numbers = 2 * shape.layers * shape.kv_heads * shape.head_size * (context or shape.context)
    fitting = _cache_bytes() // (numbers * jnp.dtype(shape.compute_dtype).itemsize)
    return 2 ** min(8, max(0, fitting.bit_length() - 1))


def _cache_bytes() -> int:
    """Half of what the device has free; on a CPU, where that would change from run to run, always the same."""
    free = jax.devices()[0].memory_stats()
    return CPU_CACHE if free is None else (free["bytes_limit"] - free["bytes_in_use"]) // 2


def name_and_arguments(section: str, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What an open section of the config names, and the other keys of the section."""
    arguments = dict(settings)
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{section}.name is {name!r}; expected a name, for example {section}=NAME")
    return name, arguments
