"""How per-token losses become one number: as weights that sum them, denominators explicit."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from rl.types import Batch

Aggregate = Literal["token_mean", "sequence_mean", "constant", "sequence_sum", "token_sum"]


def aggregation(kind: Aggregate, horizon: int) -> Callable[[Batch], jax.Array]:
    """Weights `[R, L]` for a whole batch; zero outside the mask.

    * `token_mean`: every token counts the same (DAPO, arXiv:2503.14476).
    * `sequence_mean`: every rollout counts the same, its tokens share its weight (GRPO, arXiv:2402.03300).
    * `constant`: token sums divided by `rollouts * horizon` (Dr. GRPO, arXiv:2503.20783).
    * `sequence_sum`: token sums divided by `rollouts` (REINFORCE; `constant` with a horizon of 1).
    * `token_sum`: the plain sum.

    Rollouts are those that `batch.rollouts` counts: from the packer, those with a trainable token (verl, OpenRLHF); TRL
    and SkyRL count empty ones too.

    Raises:
        ValueError: for another kind, or a horizon below 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}; expected at least 1 token")

    def count(tokens: jax.Array) -> jax.Array:
        return jnp.maximum(tokens, 1).astype(jnp.float32)

    def token_mean(batch: Batch) -> jax.Array:
        return jnp.where(batch.mask, 1.0 / count(batch.mask.sum()), 0.0)

    def sequence_mean(batch: Batch) -> jax.Array:
        return jnp.where(batch.mask, 1.0 / (count(batch.rollout_tokens) * count(batch.rollouts)), 0.0)

    def constant(batch: Batch) -> jax.Array:
        return jnp.where(batch.mask, 1.0 / (count(batch.rollouts) * horizon), 0.0)

    def sequence_sum(batch: Batch) -> jax.Array:
        return jnp.where(batch.mask, 1.0 / count(batch.rollouts), 0.0)

    def token_sum(batch: Batch) -> jax.Array:
        return batch.mask.astype(jnp.float32)

    kinds = {
        "token_mean": token_mean,
        "sequence_mean": sequence_mean,
        "constant": constant,
        "sequence_sum": sequence_sum,
        "token_sum": token_sum,
    }
    if kind not in kinds:
        raise ValueError(f"aggregate is {kind!r}; expected one of {', '.join(kinds)}")
    return kinds[kind]
