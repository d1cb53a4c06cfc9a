"""What training changes, as one value. Randomness is not part of it: keys derive from (seed, purpose, step)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from rl.models.base import Params
from rl.trainer.optimizer import Optimizer


class TrainState(NamedTuple):
    """What is trained, the optimizer's state, and how many updates were made (which is also the policy version).

    `params` are all of the model's, or the adapter alone (`rl.models.lora.split`).
    """

    params: Params
    opt_state: Any
    step: Int[Array, ""]


def init_state(params: Params, optimizer: Optimizer) -> TrainState:
    """The state before the first update."""
    transform = optimizer.transform(dict.fromkeys(optimizer.hyper, 0.0))
    return TrainState(params, transform.init(params), jnp.zeros((), jnp.int32))


def parameter_count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def global_norm(tree: Params) -> jax.Array:
    """Euclidean norm over all leaves, in float32."""
    return optax.tree.norm(tree)
