"""Group-relative policy optimisation and its near relatives: the clipped surrogate over group baselines."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from rl.algorithms.aggregate import Aggregate, aggregation
from rl.algorithms.base import Algorithm, TokenLoss
from rl.ops.advantages import group_mean_baseline, leave_one_out_baseline
from rl.ops.kl import KLEstimator, kl_estimate
from rl.ops.logprobs import TokenScores
from rl.types import Batch, Hyper


def grpo(
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    normalise_std: bool = True,
    aggregate: Aggregate = "token_mean",
    horizon: int = 1024,
    kl_weight: float = 0.0,
    kl_estimator: KLEstimator = "k3",
) -> Algorithm:
    """GRPO (Shao et al. 2024, arXiv:2402.03300) with DAPO's separate clip bounds (arXiv:2503.14476).

    Differs from the paper in two defaults: tokens, not sequences, are averaged, and there is no KL term.

    Args:
        clip_low: the ratio is clipped below at `1 - clip_low`.
        clip_high: and above at `1 + clip_high`.
        normalise_std: divide advantages by the group's standard deviation.
        aggregate: "token_mean", "sequence_mean" or "constant".
        horizon: tokens per rollout that "constant" divides by.
        kl_weight: weight of the KL to the reference policy in the loss; 0 needs no reference.
        kl_estimator: "k1", "k2" or "k3".
    """
    return Algorithm(
        credit=partial(_group_mean, normalise_std=normalise_std),
        loss=_loss(kl_weight > 0, kl_estimator),
        weights=aggregation(aggregate, horizon),
        hyper={"clip_low": clip_low, "clip_high": clip_high, "kl_weight": kl_weight},
        needs_reference=kl_weight > 0,
    )


def dr_grpo(
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    horizon: int = 1024,
    kl_weight: float = 0.0,
    kl_estimator: KLEstimator = "k3",
) -> Algorithm:
    """Dr. GRPO (Liu et al. 2025, arXiv:2503.20783): GRPO without the two normalisations that bias it.

    Args:
        clip_low: the ratio is clipped below at `1 - clip_low`.
        clip_high: and above at `1 + clip_high`.
        horizon: tokens per rollout that the sum is divided by; only scales the loss.
        kl_weight: weight of the KL to the reference policy in the loss; 0 needs no reference.
        kl_estimator: "k1", "k2" or "k3".
    """
    return grpo(clip_low, clip_high, False, "constant", horizon, kl_weight, kl_estimator)


def rloo(
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregate: Aggregate = "token_mean",
    horizon: int = 1024,
    kl_weight: float = 0.0,
    kl_estimator: KLEstimator = "k3",
) -> Algorithm:
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740) on the clipped surrogate.

    On policy the ratio is 1 and the gradient is plain REINFORCE; the clip matters once data are reused.

    Args:
        clip_low: the ratio is clipped below at `1 - clip_low`.
        clip_high: and above at `1 + clip_high`.
        aggregate: "token_mean", "sequence_mean" or "constant".
        horizon: tokens per rollout that "constant" divides by.
        kl_weight: weight of the KL to the reference policy in the loss; 0 needs no reference.
        kl_estimator: "k1", "k2" or "k3".
    """
    algorithm = grpo(clip_low, clip_high, False, aggregate, horizon, kl_weight, kl_estimator)
    return algorithm._replace(credit=leave_one_out_baseline)


def _group_mean(
    rewards: Float[np.ndarray, "P G"], valid: Bool[np.ndarray, "P G"], *, normalise_std: bool
) -> Float[np.ndarray, "P G"]:
    return group_mean_baseline(rewards, valid, normalise_std=normalise_std)


def _loss(with_kl: bool, kl_estimator: KLEstimator) -> Callable[[TokenScores, Batch, Hyper], TokenLoss]:
    """`max(-A r, -A clip(r))` per token (PPO, arXiv:1707.06347, eq. 7), plus the KL term where there is one.

    The metrics `mismatch/*` say how far the trainer's log-probabilities are from the sampler's: on policy they are
    rounding, and anything more is a bug in one of the two.
    """

    def loss(scores: TokenScores, batch: Batch, hyper: Hyper) -> TokenLoss:
        log_ratio = jnp.where(batch.mask, scores.logprobs - batch.behaviour_logprobs, 0.0)
        ratio = jnp.exp(log_ratio)
        clipped = jnp.clip(ratio, 1.0 - hyper["clip_low"], 1.0 + hyper["clip_high"])
        surrogate = jnp.maximum(-batch.advantages * ratio, -batch.advantages * clipped)
        metrics = {
            "clip_fraction": (-batch.advantages * clipped > -batch.advantages * ratio).astype(jnp.float32),
            "mismatch/abs": jnp.abs(log_ratio),
            "mismatch/k3": jnp.expm1(log_ratio) - log_ratio,
        }
        if with_kl:
            reference = jnp.where(batch.mask, batch.reference_logprobs, 0.0)
            kl = kl_estimate(jnp.where(batch.mask, scores.logprobs, 0.0), reference, kl_estimator)
            surrogate = surrogate + hyper["kl_weight"] * kl
            metrics["kl_reference"] = kl
        return TokenLoss(surrogate, metrics)

    return loss
