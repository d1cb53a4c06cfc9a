"""What training changes, as one value. Randomness is not part of it: keys derive from (seed, purpose, step)."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from rl.models.base import Params
from rl.trainer.critic import CriticState
from rl.trainer.optimizer import Optimizer


class TrainState(NamedTuple):
    """What is trained, the optimizer's state, and how many updates were made (which is also the policy version).

    `params` are all of the model's, or the adapter alone (`rl.models.lora.split`). Beside the policy there may be a
    critic, what credit keeps from step to step, by environment, and a moving average of what is trained, in its dtype.
    """

    params: Params
    opt_state: Any
    step: Int[Array, ""]
    critic: CriticState | None = None
    kept: Mapping[str, Float[Array, ""]] = {}
    average: Params | None = None


def init_state(
    params: Params,
    optimizer: Optimizer,
    critic: CriticState | None = None,
    keys: Iterable[str] = (),
    *,
    averaged: bool = False,
) -> TrainState:
    """The state before the first update.

    Args:
        params: what is trained.
        optimizer: of them.
        critic: from `rl.trainer.critic.init_critic`.
        keys: what credit keeps a number for.
        averaged: keep a moving average of the parameters, too.
    """
    transform = optimizer.transform(dict.fromkeys(optimizer.hyper, 0.0))
    kept = {key: jnp.zeros(()) for key in keys}
    average = jax.tree.map(jnp.copy, params) if averaged else None  # a copy: an update uses up both
    return TrainState(params, transform.init(params), jnp.zeros((), jnp.int32), critic, kept, average)


def parameter_count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def global_norm(tree: Params) -> jax.Array:
    """Euclidean norm over all leaves, in float32."""
    return optax.tree.norm(tree)
