"""The loss of a critic."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from rl.types import Number


def value_loss(
    values: Float[Array, "*shape"],
    old_values: Float[Array, "*shape"],
    returns: Float[Array, "*shape"],
    *,
    clip: Number | None = 0.2,
    kind: Literal["square", "huber"] = "square",
    huber_delta: Number = 10.0,
) -> Float[Array, "*shape"]:
    """Half the squared error per token, or of the value clipped to `old_values` ± `clip` where that is larger (PPO's
    reference implementation; arXiv:2005.12729 discusses it).

    Args:
        values: the critic's.
        old_values: the critic's when the returns were made.
        returns: what it should say.
        clip: how far a value may move before its gradient stops; None leaves it out.
        kind: square, or huber: linear beyond `huber_delta`.
        huber_delta: error from which on it is linear.
    """

    def error(v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        distance = v - returns
        if kind == "square":
            return 0.5 * distance**2
        size = jnp.abs(distance)
        return jnp.where(size < huber_delta, 0.5 * distance**2, huber_delta * (size - 0.5 * huber_delta))

    if clip is None:
        return error(values)
    return jnp.maximum(error(values), error(old_values + jnp.clip(values - old_values, -clip, clip)))
