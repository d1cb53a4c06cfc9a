"""Optimizers whose every number is traced: the transformation is rebuilt from `hyper` inside the compiled update."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rl.types import Hyper

SCHEDULES = ("constant", "linear", "cosine")


class Optimizer(NamedTuple):
    """`transform(hyper)` turns gradients into steps; `lr(step, hyper)` is the schedule; `hyper` holds its numbers."""

    transform: Callable[[Hyper], optax.GradientTransformation]
    lr: Callable[[jax.Array, Hyper], jax.Array]
    hyper: Mapping[str, float]


def adamw(
    lr: float = 3e-4,
    schedule: str = "constant",
    warmup: int = 0,
    final_lr: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    expert_bias_rate: float = 0.0,
    *,
    steps: int,
) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) after clipping the gradient's global norm.

    Args:
        lr: learning rate after warm-up.
        schedule: "constant", "linear" or "cosine", from `lr` to `final_lr * lr` over `steps`.
        warmup: updates over which the rate rises linearly to `lr`.
        final_lr: fraction of `lr` at the last update.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: per update, times the learning rate; norm scales and balancing biases are not decayed.
        max_grad_norm: gradients with a larger global norm are scaled down to it.
        expert_bias_rate: by how much an update moves the biases that balance the load of experts, where a model has
            them (DeepSeek-V3 took 1e-3); AdamW itself leaves them alone.
        steps: updates in the whole run.

    Raises:
        ValueError: for another schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)}")

    def transform(hyper: Hyper) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(b1=hyper["b1"], b2=hyper["b2"], eps=hyper["eps"]),
            optax.add_decayed_weights(hyper["weight_decay"], mask=_decayed),
        )

    def rate(step: jax.Array, hyper: Hyper) -> jax.Array:
        done = step.astype(jnp.float32)
        ramp = jnp.minimum((done + 1.0) / jnp.maximum(hyper["warmup"], 1.0), 1.0)
        last = hyper["steps"] - 1.0
        progress = jnp.clip((done - hyper["warmup"]) / jnp.maximum(last - hyper["warmup"], 1.0), 0.0, 1.0)
        left = 1.0 if schedule == "constant" else 1.0 - progress
        if schedule == "cosine":
            left = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return hyper["lr"] * ramp * (hyper["final_lr"] + (1.0 - hyper["final_lr"]) * left)

    hyper = {
        "lr": lr,
        "warmup": float(warmup),
        "final_lr": final_lr,
        "steps": float(steps),
        "b1": b1,
        "b2": b2,
        "eps": eps,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "expert_bias_rate": expert_bias_rate,
    }
    return Optimizer(transform, rate, hyper)


def _decayed(params: optax.Params) -> optax.Params:
    def decays(path: Any, _: Any) -> bool:
        name = jax.tree_util.keystr(path)
        return "scale" not in name and "load_bias" not in name

    return jax.tree_util.tree_map_with_path(decays, params)
