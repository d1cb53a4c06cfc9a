"""Which tokens would cost the most entropy: those whose probability and advantage are both far above average, or below.

Cui et al. 2025, arXiv:2505.22617. The choice is made over the whole batch before it is cut, by the log-probabilities at
sampling time; on policy these are the policy's own.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl.types import Batch, Number


def covariances(
    advantages: Float[Array, "R L"], logprobs: Float[Array, "R L"], mask: Bool[Array, "R L"]
) -> Float[Array, "R L"]:
    """`(A - mean A) (log p - mean log p)`; minus infinity outside the mask."""
    count = jnp.maximum(mask.sum(), 1).astype(logprobs.dtype)

    def centred(values: Float[Array, "R L"]) -> Float[Array, "R L"]:
        inside = jnp.where(mask, values, 0.0)
        return inside - inside.sum() / count

    return jnp.where(mask, centred(advantages) * centred(logprobs), -jnp.inf)


def largest(values: Float[Array, "R L"], mask: Bool[Array, "R L"], fraction: Number) -> Bool[Array, "R L"]:
    """The largest `fraction` of the masked values, rounded down, and at least one."""
    number = jnp.maximum(jnp.floor(mask.sum().astype(jnp.float32) * fraction), 1.0)
    order = jnp.argsort(jnp.argsort(-values, axis=None), axis=None).reshape(values.shape)
    return (order.astype(jnp.float32) < number) & mask


def choose_band(
    batch: Batch, *, chosen_fraction: Number = 2e-4, covariance_low: Number = 1.0, covariance_high: Number = 5.0
) -> Batch:
    """Chooses the tokens of the largest covariance in a band, for `clip_cov`. (The authors draw among them at random.)

    Args:
        chosen_fraction: of all tokens, at most.
        covariance_low: only tokens above this.
        covariance_high: and below this.
    """
    covariance = covariances(batch.advantages, batch.behaviour_logprobs, batch.mask)
    candidates = (covariance > covariance_low) & (covariance < covariance_high)
    ranked = jnp.where(candidates, covariance, -jnp.inf)
    return batch._replace(chosen=largest(ranked, batch.mask, chosen_fraction) & candidates)


def choose_largest(batch: Batch, *, chosen_fraction: Number = 2e-4) -> Batch:
    """Chooses the tokens of the largest covariance, for `kl_cov`.

    Args:
        chosen_fraction: of all tokens; at least one token.
    """
    covariance = covariances(batch.advantages, batch.behaviour_logprobs, batch.mask)
    return batch._replace(chosen=largest(covariance, batch.mask, chosen_fraction))


CHOICES: Mapping[str, Callable[..., Batch]] = {"clip_cov": choose_band, "kl_cov": choose_largest}
"""By the loss that needs them."""
