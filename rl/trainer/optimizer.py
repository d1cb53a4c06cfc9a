"""Optimizers whose every number is traced: the transformation is rebuilt from `hyper` inside the compiled update."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rl.models.matrices import path_name
from rl.trainer import rules
from rl.trainer.rules import Rule
from rl.types import Hyper

SCHEDULES = ("constant", "linear", "cosine", "wsd")


class Optimizer(NamedTuple):
    """`transform(hyper)` turns gradients into steps; `lr(step, hyper)` is the schedule; `hyper` holds its numbers."""

    transform: Callable[[Hyper], optax.GradientTransformation]
    lr: Callable[[jax.Array, Hyper], jax.Array]
    hyper: Mapping[str, float]


def scheduled(
    rule: Rule,
    *,
    steps: int,
    lr: float = 3e-4,
    schedule: str = "constant",
    warmup: int = 0,
    final_lr: float = 0.0,
    decay: float = 0.2,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    expert_bias_rate: float = 0.0,
    groups: Mapping[str, float] | None = None,
) -> Optimizer:
    """A rule with a learning rate, after clipping the gradient's global norm.

    Args:
        rule: from `rl.trainer.rules`.
        steps: updates in the whole run.
        lr: learning rate after warm-up.
        schedule: "constant"; "linear" or "cosine", from `lr` to `final_lr * lr` over `steps`; "wsd" (warm-up, stable,
            decay; MiniCPM, arXiv:2404.06395), constant and then linear over the last `decay * steps`.
        warmup: updates over which the rate rises linearly to `lr`.
        final_lr: fraction of `lr` at the last update.
        decay: fraction of the updates over which "wsd" lets the rate fall.
        weight_decay: per update, times the learning rate; norm scales and balancing biases are not decayed.
        max_grad_norm: gradients with a larger global norm are scaled down to it.
        expert_bias_rate: by how much an update moves the biases that balance the load of experts, where a model has
            them (DeepSeek-V3 took 1e-3); the rule itself leaves them alone.
        groups: what to multiply the learning rate (and so the decay) of some parameters with, by regular expression for
            whole names as of adapters: "attention/(q|k)" matches "layers/attention/q", and a factor of 0 leaves them as
            they are. The first that matches counts. Initialising the state raises `ValueError` for one that matches
            nothing.

    Raises:
        ValueError: for another schedule, or an expression that cannot be read.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    patterns = {name: _pattern(name) for name in groups or {}}

    def transform(hyper: Hyper) -> optax.GradientTransformation:
        decayed = optax.add_decayed_weights(hyper["weight_decay"], mask=_decayed)
        grouped = [_by_group(patterns, hyper)] if patterns else []
        return optax.chain(rule.transform(hyper), decayed, *grouped)

    def rate(step: jax.Array, hyper: Hyper) -> jax.Array:
        done = step.astype(jnp.float32)
        ramp = jnp.minimum((done + 1.0) / jnp.maximum(hyper["warmup"], 1.0), 1.0)
        return hyper["lr"] * ramp * (hyper["final_lr"] + (1.0 - hyper["final_lr"]) * _left(schedule, done, hyper))

    numbers = {
        "lr": lr,
        "warmup": float(warmup),
        "final_lr": final_lr,
        "decay": decay,
        "steps": float(steps),
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "expert_bias_rate": expert_bias_rate,
        **{_factor(name): factor for name, factor in (groups or {}).items()},
    }
    return Optimizer(transform, rate, {**numbers, **rule.hyper})


def adamw(*, b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8, **settings: Any) -> Optimizer:
    """`scheduled` AdamW, by the arguments of both."""
    return scheduled(rules.adamw(b1, b2, eps), **settings)


def _left(schedule: str, done: jax.Array, hyper: Hyper) -> jax.Array | float:
    """What is left of the way from `lr` down to `final_lr * lr`: 1 at first, 0 at the last update."""
    if schedule == "constant":
        return 1.0
    last = hyper["steps"] - 1.0
    if schedule == "wsd":
        return jnp.clip((last - done) / jnp.maximum(hyper["decay"] * hyper["steps"], 1.0), 0.0, 1.0)
    progress = jnp.clip((done - hyper["warmup"]) / jnp.maximum(last - hyper["warmup"], 1.0), 0.0, 1.0)
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress)) if schedule == "cosine" else 1.0 - progress


def _decayed(params: optax.Params) -> optax.Params:
    def decays(path: Any, _: Any) -> bool:
        name = jax.tree_util.keystr(path)
        return "scale" not in name and "load_bias" not in name

    return jax.tree_util.tree_map_with_path(decays, params)


def _by_group(patterns: Mapping[str, re.Pattern[str]], hyper: Hyper) -> optax.GradientTransformation:
    """Multiplies each step by the factor of the first pattern that its parameter's path matches."""

    def init(params: optax.Params) -> optax.EmptyState:
        paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
        for name, pattern in patterns.items():
            if not any(pattern.fullmatch(path) for path in paths):
                raise ValueError(f"groups has '{name}', which matches no parameter; known: {', '.join(paths)}")
        return optax.EmptyState()

    def scale(path: Any, step: jax.Array) -> jax.Array:
        name = next((name for name, pattern in patterns.items() if pattern.fullmatch(path_name(path))), None)
        return step if name is None else step * hyper[_factor(name)]

    def update(
        steps: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        return jax.tree_util.tree_map_with_path(scale, steps), state

    return optax.GradientTransformation(init, update)


def _pattern(name: str) -> re.Pattern[str]:
    try:
        return re.compile(f"(?:.*/)?(?:{name})")
    except re.error as error:
        raise ValueError(f"groups has '{name}', which is no regular expression: {error}") from error


def _factor(name: str) -> str:
    """Where `hyper` has the factor of a group."""
    return f"lr_factor/{name}"
