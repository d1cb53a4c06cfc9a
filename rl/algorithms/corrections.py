"""Corrections for tokens that another policy sampled: an older one, or the same one computed by another program.

Each is one function `correction(tokens, **numbers) -> [R, L]`, which the policy loss of a token is multiplied with;
none of them has a gradient. `mismatch` is the log of the trainer's over the sampler's probability of a token; the
trainer's is that of the policy before the update: with one step per batch, the one being trained. Several corrections
multiply. A token that is left out still counts in the denominators, so that leaving out makes a step smaller and not
noisier.

`WEIGHTS` are importance weights and belong to losses whose ratio is not already to the sampler (`ratio_to="current"`:
decoupled PPO, arXiv:2505.24298); `MASKS` go with any.
"""

from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl.algorithms.base import Correction, Tokens
from rl.ops.masked import clamp
from rl.ops.segments import segment_max, segment_mean, segment_sum
from rl.types import Number

WeightLevel = Literal["token", "sequence", "geometric"]
Statistic = Literal["ratio", "k1", "k2", "k3", "k3_reverse", "tv", "binary_kl"]
RejectLevel = Literal["token", "sum", "mean", "max", "all"]

LIMIT = 20.0
"""Log-ratios (nats) are clamped to ± this before they are exponentiated."""


def importance_weights(x: Tokens, level: WeightLevel) -> Float[Array, "R L"]:
    """The trainer's over the sampler's probability: of the token, of its sequence, or their geometric mean over it."""
    if level == "sequence":
        log_weight = segment_sum(x.mismatch, x.mask, x.segment_ids)
    elif level == "geometric":
        log_weight = segment_mean(x.mismatch, x.mask, x.segment_ids)
    else:
        log_weight = x.mismatch
    return jnp.exp(clamp(log_weight, LIMIT))


def tis(
    x: Tokens, *, tis_level: WeightLevel = "token", tis_low: Number = 0.0, tis_high: Number = 2.0
) -> Float[Array, "R L"]:
    """Truncated importance weights (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"; of sequences: Espeholt et al. 2018, arXiv:1802.01561).

    Args:
        tis_level: token, sequence or geometric.
        tis_low: smallest importance weight.
        tis_high: largest importance weight.
    """
    return jnp.clip(importance_weights(x, tis_level), tis_low, tis_high)


def mis(
    x: Tokens, *, mis_level: WeightLevel = "token", mis_low: Number = 0.5, mis_high: Number = 5.0
) -> Float[Array, "R L"]:
    """Masked importance weights: 0 outside a band, themselves inside it (IcePop of Ring-1T, arXiv:2510.18855; of
    sequences: MIS of Liu et al. 2025, "When speed kills stability").

    Args:
        mis_level: token, sequence or geometric.
        mis_low: smallest importance weight that counts.
        mis_high: largest importance weight that counts.
    """
    weights = importance_weights(x, mis_level)
    return jnp.where((weights >= mis_low) & (weights <= mis_high), weights, 0.0)


def kept(x: Tokens, by: Statistic, level: RejectLevel, low: Number, high: Number) -> Bool[Array, "R L"]:
    """Tokens whose statistic lies in `[low, high]`."""
    value = statistic(x, by)
    if level == "all":
        outside = ((value < low) | (value > high)).astype(value.dtype)
        return segment_max(outside, x.mask, x.segment_ids) < 0.5
    if by == "ratio":  # of a sequence: in the logarithm
        value = clamp(x.mismatch, LIMIT)
    over = {"sum": segment_sum, "mean": segment_mean, "max": segment_max}
    if level != "token":
        value = over[level](value, x.mask, x.segment_ids)
    if by == "ratio":
        value = jnp.exp(value)
    return (value >= low) & (value <= high)


def statistic(x: Tokens, by: Statistic) -> Float[Array, "R L"]:
    """How far trainer and sampler disagree about each token.

    With `d` the mismatch: `ratio = exp(d)`, `k1 = -d`, `k2 = d^2 / 2`, `k3 = exp(d) - 1 - d` (verl) and `k3_reverse =
    exp(-d) - 1 + d` (AReaL) estimate the KL divergence; `tv` and `binary_kl` are the total variation and the KL
    divergence of "this token or another" (OpenRLHF; probabilities are kept 1e-6 away from 0 and 1).
    """
    d = clamp(x.mismatch, LIMIT)
    if by == "ratio":
        return jnp.exp(d)
    if by == "k1":
        return -d
    if by == "k2":
        return 0.5 * d**2
    if by == "k3":
        return jnp.expm1(d) - d
    if by == "k3_reverse":
        return jnp.expm1(-d) + d
    p = jnp.clip(jnp.exp(x.behaviour_logprobs), 1e-6, 1.0 - 1e-6)
    q = jnp.clip(jnp.exp(x.behaviour_logprobs + x.mismatch), 1e-6, 1.0 - 1e-6)
    if by == "tv":
        return jnp.abs(p - q)
    return p * jnp.log(p / q) + (1.0 - p) * jnp.log((1.0 - p) / (1.0 - q))


def reject(
    x: Tokens,
    *,
    reject_by: Statistic = "ratio",
    reject_level: RejectLevel = "mean",
    reject_low: Number = 0.5,
    reject_high: Number = 2.0,
) -> Float[Array, "R L"]:
    """1 for what trainer and sampler agree on well enough, 0 for the rest.

    Args:
        reject_by: ratio, k1, k2, k3, k3_reverse, tv or binary_kl (see `statistic`).
        reject_level: token; sum, mean (of the ratio: geometric) or max over the sequence; all: a sequence goes if one
            of its tokens does.
        reject_low: smallest value that is kept.
        reject_high: largest value that is kept.
    """
    return kept(x, reject_by, reject_level, reject_low, reject_high).astype(x.mismatch.dtype)


def opsm(x: Tokens, *, opsm_kl: Number = 0.05) -> Float[Array, "R L"]:
    """Off-policy sequence masking (DeepSeek-V3.2, arXiv:2512.02556): leaves out sequences with a negative advantage
    that the policy has already moved away from.

    Args:
        opsm_kl: mean over the sequence of `log sampler - log trainer` (nats) up to which it is kept.
    """
    moved = -segment_mean(x.mismatch, x.mask, x.segment_ids)
    return ((x.advantages >= 0) | (moved <= opsm_kl)).astype(x.mismatch.dtype)


def staleness(x: Tokens, *, max_age: Number = 4.0) -> Float[Array, "R L"]:
    """1 for tokens that are at most so many updates old, 0 for older ones (PipelineRL, arXiv:2509.19128, mixes ages
    within a sequence).

    Args:
        max_age: updates.
    """
    return (x.ages <= max_age).astype(x.mismatch.dtype)


WEIGHTS: Mapping[str, Correction] = {"tis": tis, "mis": mis}
MASKS: Mapping[str, Correction] = {"reject": reject, "opsm": opsm, "staleness": staleness}
CORRECTIONS: Mapping[str, Correction] = {**WEIGHTS, **MASKS}
