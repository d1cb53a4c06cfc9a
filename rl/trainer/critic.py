"""The critic: what a token is expected to lead to, before it is drawn. Trained beside the policy, and never published.

Its parameters are a head, `{"weight" [D], "bias"}`, and with a trunk of its own also `"trunk"`: a copy of what is
trained of the policy, so either a whole model (less its output head) or an adapter over the same frozen weights.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from rl.models.base import Params
from rl.models.lora import join
from rl.ops.masked import masked_sum


class CriticState(NamedTuple):
    """A critic's parameters and its optimizer's state."""

    params: Params
    opt_state: Any


def init_critic(
    kind: Literal["shared", "separate"], width: int, trained: Params, place: Callable[[Any], Any] = lambda tree: tree
) -> CriticState:
    """A critic that expects nothing yet: its head is zero, so that its first words are no noise in the advantages.

    Args:
        kind: with the policy's layers, or with its own, which begin as the policy's.
        width: of the model.
        trained: of the policy: `rl.models.lora.split`.
        place: puts the head where it shall lie.
    """
    params: dict[str, Any] = place({"weight": jnp.zeros(width), "bias": jnp.zeros(())})
    if kind == "separate":
        params["trunk"] = {name: jax.tree.map(jnp.copy, part) for name, part in trained.items() if name != "head"}
    return CriticState(params, _ADAM.init(params))


def whole(params: Params, policy: Params, frozen: Params | None) -> Params:
    """The critic's parameters with a trunk that computes: what it does not own is the policy's.

    Args:
        params: the critic's.
        policy: whole, its adapter joined.
        frozen: what `split` left beside the policy's adapter.
    """
    if "trunk" not in params:
        return params
    trunk = params["trunk"] if frozen is not None else {**jax.lax.stop_gradient(policy), **params["trunk"]}
    return {**params, "trunk": join(trunk, frozen)}


def judge(params: Params, hidden: Float[Array, "*shape D"]) -> Float[Array, "*shape"]:
    """What is expected after the state that `hidden` describes, in float32."""
    weight = params["weight"].astype(hidden.dtype)
    return jnp.einsum("...D,D->...", hidden, weight, preferred_element_type=jnp.float32) + params["bias"]


def improve(critic: CriticState, gradient: Params, lr: jax.Array, max_norm: Any) -> tuple[CriticState, jax.Array]:
    """One step of Adam (decays 0.9 and 0.95) after clipping the gradient's own norm; also returns that norm.

    Args:
        critic: before.
        gradient: of its parameters.
        lr: learning rate.
        max_norm: gradients with a larger global norm are scaled down to it.
    """
    norm = optax.tree.norm(gradient)
    scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))
    with jax.numpy_dtype_promotion("standard"):  # as in `rl.trainer.update`
        clipped = jax.tree.map(lambda g: g * scale, gradient)
        steps, opt_state = _ADAM.update(clipped, critic.opt_state)
        params = jax.tree.map(lambda p, s: (p - lr * s).astype(p.dtype), critic.params, steps)
    return CriticState(params, opt_state), norm


def explained_variance(
    values: Float[Array, "*shape"], returns: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Float[Array, ""]:
    """`1 - Var(returns - values) / Var(returns)` over the mask: 1 is all-knowing, 0 as good as a constant.

    0 where all returns are equal: there was nothing to explain.
    """
    count = jnp.maximum(mask.sum(), 1).astype(values.dtype)

    def variance(x: jax.Array) -> jax.Array:
        return masked_sum((x - masked_sum(x, mask) / count) ** 2, mask) / count

    total = variance(returns)
    return jnp.where(total > 1e-12, 1.0 - variance(returns - values) / jnp.maximum(total, 1e-12), 0.0)


_ADAM = optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8)
