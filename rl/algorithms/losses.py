"""Policy losses: from log-probabilities and advantages to a loss per token.

Each is one function `loss(tokens, **numbers) -> TokenLoss`. A number (annotated `float`) is a hyper-parameter and may
be traced; everything else is a choice. `LOSSES` names them for configs.

The ratio is `exp(level(logprobs - old_logprobs))`, where the level is

* `token`: of each token;
* `sequence`: the mean over its sequence (GSPO); the gradient reaches all of its tokens through it;
* `sequence_token`: the same value, but the gradient of each token's own log-probability (GSPO-token);
* `sequence_sum`: the sum over its sequence, that is the ratio of the whole sequence's probabilities.

A sequence is a segment: a rollout whose turns do not continue each other's tokens is several.
"""

import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl.algorithms.base import Loss, TokenLoss, Tokens
from rl.algorithms.distillation import Divergence, Tail, apart_on_top
from rl.algorithms.privileged import privilege
from rl.ops.masked import clamp, magnitude
from rl.ops.segments import segment_mean, segment_sum
from rl.types import Number

Level = Literal["token", "sequence", "sequence_token", "sequence_sum"]


def log_ratios(x: Tokens, level: Level, limit: Number) -> Float[Array, "R L"]:
    """The log of the ratio, clamped to ± `limit`; beyond it there is no gradient."""
    difference = x.logprobs - x.old_logprobs
    if level == "sequence":
        difference = segment_mean(difference, x.mask, x.segment_ids)
    elif level == "sequence_sum":
        difference = segment_sum(difference, x.mask, x.segment_ids)
    elif level == "sequence_token":
        mean = jax.lax.stop_gradient(segment_mean(difference, x.mask, x.segment_ids))
        difference = x.logprobs - jax.lax.stop_gradient(x.logprobs) + mean
    return clamp(difference, limit)


def clip(
    x: Tokens,
    *,
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
    dual_clip: Number | None = None,
    level: Level = "token",
    log_ratio_limit: Number = 20.0,
) -> TokenLoss:
    """`max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))` (PPO, arXiv:1707.06347, eq. 7).

    Args:
        clip_low: the ratio is clipped below at `1 - clip_low`.
        clip_high: and above at `1 + clip_high`.
        dual_clip: for negative advantages the loss stays below `-A dual_clip` (arXiv:1912.09729); null leaves it out.
        level: of the ratio: token, sequence, sequence_token or sequence_sum.
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    ratio = jnp.exp(log_ratios(x, level, log_ratio_limit))
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    surrogate = jnp.maximum(-x.advantages * ratio, -x.advantages * clipped)
    if dual_clip is not None:
        surrogate = jnp.where(x.advantages < 0, jnp.minimum(surrogate, -x.advantages * dual_clip), surrogate)
    clipped_off = (-x.advantages * clipped > -x.advantages * ratio).astype(jnp.float32)
    return TokenLoss(surrogate, {"clip_fraction": clipped_off})


def reinforce(x: Tokens) -> TokenLoss:
    """`-A log p` (REINFORCE, Williams 1992): the policy gradient as if the policy itself had sampled."""
    return TokenLoss(-x.advantages * x.logprobs, {})


def importance(x: Tokens, *, level: Level = "token", log_ratio_limit: Number = 20.0) -> TokenLoss:
    """`-A r`: the policy gradient with the importance weight, unclipped (Tinker's `importance_sampling`).

    Args:
        level: of the ratio: token, sequence, sequence_token or sequence_sum.
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    return TokenLoss(-x.advantages * jnp.exp(log_ratios(x, level, log_ratio_limit)), {})


def cispo(
    x: Tokens,
    *,
    weight_low: Number = 0.0,
    weight_high: Number = 5.0,
    proximity: Number = 0.0,
    level: Level = "token",
    log_ratio_limit: Number = 20.0,
) -> TokenLoss:
    """`-sg(clip(r, weight_low, weight_high)) A log p`: clipped importance weights, no token loses its gradient (CISPO
    of MiniMax-M1, arXiv:2506.13585).

    The bounds are of the ratio itself, as in TRL and Tinker; verl, SkyRL and ART say `1 - low` and `1 + high`.

    Args:
        weight_low: smallest importance weight.
        weight_high: largest importance weight.
        proximity: times the log-ratio is taken off the advantages (Kimi K2, arXiv:2507.20534; ART's `kimi_k2_tau`).
        level: of the ratio: token, sequence, sequence_token or sequence_sum.
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    log_ratio = jax.lax.stop_gradient(log_ratios(x, level, log_ratio_limit))
    ratio = jnp.exp(log_ratio)
    weight = jnp.clip(ratio, weight_low, weight_high)
    loss = -weight * (x.advantages - proximity * log_ratio) * x.logprobs
    return TokenLoss(loss, {"clip_fraction": (weight != ratio).astype(jnp.float32)})


def sapo(
    x: Tokens,
    *,
    sharpness_up: Number = 1.0,
    sharpness_down: Number = 1.05,
    level: Level = "token",
    log_ratio_limit: Number = 20.0,
) -> TokenLoss:
    """`-A (4 / tau) sigmoid(tau (r - 1))`: a soft gate instead of a clip (SAPO, arXiv:2511.20347).

    Args:
        sharpness_up: tau where the advantage is positive.
        sharpness_down: tau elsewhere; larger, since what pushes down is the less stable.
        level: of the ratio: token, sequence, sequence_token or sequence_sum.
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    ratio = jnp.exp(log_ratios(x, level, log_ratio_limit))
    tau = jnp.where(x.advantages > 0, sharpness_up, sharpness_down)
    return TokenLoss(-x.advantages * jax.nn.sigmoid(tau * (ratio - 1.0)) * 4.0 / tau, {})


def gmpo(x: Tokens, *, log_clip_low: Number = 0.4, log_clip_high: Number = 0.4) -> TokenLoss:
    """`-A (prod_t r_t)^(1/T)` with each log-ratio clipped first (GMPO, arXiv:2507.20673): a geometric mean over the
    sequence, which outliers move little. Every token of a sequence has the sequence's loss.

    Args:
        log_clip_low: for negative advantages, log-ratios (nats) are clipped below at minus this.
        log_clip_high: for positive ones, above at this.
    """
    difference = x.logprobs - x.old_logprobs
    clipped = jnp.clip(difference, -log_clip_low, log_clip_high)
    # min(sign d, sign clip(d)) sign: the pessimistic one of the two; without an advantage it does not matter.
    sign = jnp.sign(x.advantages)
    pessimistic = sign * jnp.minimum(sign * difference, sign * clipped)
    ratio = jnp.exp(jnp.minimum(segment_mean(pessimistic, x.mask, x.segment_ids), 20.0))
    advantages = segment_mean(x.advantages, x.mask, x.segment_ids)
    return TokenLoss(-advantages * ratio, {"clip_fraction": (clipped != difference).astype(jnp.float32)})


def _masked_by_divergence(
    x: Tokens, keep: Bool[Array, "R L"], weight_high: Number | None, log_ratio_limit: Number
) -> TokenLoss:
    ratio = jnp.exp(log_ratios(x, "token", log_ratio_limit))
    metrics = {"clip_fraction": (~keep).astype(jnp.float32)}
    if weight_high is None:
        return TokenLoss(jnp.where(keep, -x.advantages * ratio, 0.0), metrics)
    weight = jax.lax.stop_gradient(jnp.minimum(ratio, weight_high))
    return TokenLoss(jnp.where(keep, -x.advantages * weight * x.logprobs, 0.0), metrics)


def dppo_tv(
    x: Tokens,
    *,
    divergence_low: Number = 0.15,
    divergence_high: Number = 0.15,
    weight_high: Number | None = 20.0,
    log_ratio_limit: Number = 20.0,
) -> TokenLoss:
    """`-sg(min(r, weight_high)) A log p` for tokens whose probability did not already move too far the way the
    advantage points (DPPO with total variation, arXiv:2602.04879): probabilities, not ratios, bound the step.

    Args:
        divergence_low: how much probability a token with a negative advantage may have lost.
        divergence_high: how much a token with a positive one may have gained.
        weight_high: largest importance weight; null takes `-A r`, which has the same gradient without a bound (SkyRL).
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    gained = jax.lax.stop_gradient(jnp.exp(x.logprobs)) - jnp.exp(x.old_logprobs)
    keep = jnp.where(x.advantages > 0, gained <= divergence_high, gained >= -divergence_low)
    return _masked_by_divergence(x, keep, weight_high, log_ratio_limit)


def dppo_kl(
    x: Tokens,
    *,
    divergence_low: Number = 0.05,
    divergence_high: Number = 0.05,
    weight_high: Number | None = 20.0,
    log_ratio_limit: Number = 20.0,
) -> TokenLoss:
    """The same with the KL divergence of "this token or another" instead of total variation (DPPO, arXiv:2602.04879).

    Args:
        divergence_low: KL (nats) up to which a token with a negative advantage may have become less likely.
        divergence_high: KL up to which a token with a positive one may have become likelier.
        weight_high: largest importance weight; null takes `-A r`, which has the same gradient without a bound (SkyRL).
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    new = jax.lax.stop_gradient(x.logprobs)
    p, q = jnp.exp(x.old_logprobs), jnp.exp(new)
    divergence = p * (x.old_logprobs - new) + (1.0 - p) * jnp.log((1.0 - p + 1e-8) / (1.0 - q + 1e-8))
    up = (divergence <= divergence_high) | (q <= p)
    down = (divergence <= divergence_low) | (q >= p)
    return _masked_by_divergence(x, jnp.where(x.advantages > 0, up, down), weight_high, log_ratio_limit)


def ipo(
    x: Tokens,
    *,
    divergence_low: Number = 0.2,
    divergence_high: Number = 0.2,
    proximity: Number = 1e-3,
    log_ratio_limit: Number = 20.0,
) -> TokenLoss:
    """`-A r` masked by the change of probability, plus `proximity * (log r)^2` on every token (the loss of prime-rl,
    which calls it IPO; no preferences are involved. INTELLECT-3, arXiv:2512.16144).

    Args:
        divergence_low: how much probability a token with a negative advantage may have lost.
        divergence_high: how much a token with a positive one may have gained.
        proximity: weight of the squared log-ratio.
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    masked = dppo_tv(
        x,
        divergence_low=divergence_low,
        divergence_high=divergence_high,
        weight_high=None,
        log_ratio_limit=log_ratio_limit,
    )
    return masked._replace(loss=masked.loss + proximity * log_ratios(x, "token", log_ratio_limit) ** 2)


def dro(
    x: Tokens, *, proximity: Number = 0.1, level: Level = "token", log_ratio_limit: Number = float("inf")
) -> TokenLoss:
    """`-(A log p - proximity / 2 (log r)^2)`: a square holds the policy near the old one, without weights or clips
    (DRO, arXiv:2405.19107; over the sequence, Kimi K1.5, arXiv:2501.12599).

    Args:
        proximity: weight of the squared log-ratio.
        level: of the log-ratio: token, or sequence_sum for that of the whole sequence.
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    log_ratio = log_ratios(x, level, log_ratio_limit)
    if level == "token":
        return TokenLoss(0.5 * proximity * log_ratio**2 - x.advantages * x.logprobs, {})
    # The square belongs to the sequence. Its gradient, written out, gives every token its share whatever the weights.
    held = x.advantages - proximity * jax.lax.stop_gradient(log_ratio)
    return TokenLoss(-held * x.logprobs, {})


def topr(x: Tokens, *, level: Level = "sequence_sum", log_ratio_limit: Number = 20.0) -> TokenLoss:
    """`-A log p` for what was good, `-sg(min(r, 1)) A log p` for what was bad (TOPR, arXiv:2503.14286).

    Good answers are learned as in SFT however old they are; bad ones are unlearned while the policy still gives them.

    Args:
        level: of the ratio: token, sequence, sequence_token or sequence_sum.
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    ratio = jnp.exp(jax.lax.stop_gradient(log_ratios(x, level, log_ratio_limit)))
    weight = jnp.where(x.advantages < 0, jnp.minimum(ratio, 1.0), 1.0)
    return TokenLoss(-weight * x.advantages * x.logprobs, {})


def vespo(
    x: Tokens,
    *,
    power_up: Number = 2.0,
    decay_up: Number = 3.0,
    power_down: Number = 3.0,
    decay_down: Number = 2.0,
) -> TokenLoss:
    """`-sg(w^k exp(lambda (1 - w))) A log p`, where `w` is the sequence's probability over the sampler's (VESPO,
    arXiv:2602.10693): the weight is 1 on policy and falls off softly on both sides.

    Args:
        power_up: k where the advantage is not negative.
        decay_up: lambda there.
        power_down: k elsewhere.
        decay_down: lambda elsewhere.
    """
    floor = math.log(1e-8)
    drift = clamp(x.logprobs - x.old_logprobs, 20.0)
    since = jnp.clip(x.old_logprobs - x.behaviour_logprobs, floor, 20.0)
    log_weight = segment_sum(drift + since, x.mask, x.segment_ids)
    log_weight = jax.lax.stop_gradient(jnp.clip(log_weight, floor, 20.0))
    power = jnp.where(x.advantages >= 0, power_up, power_down)
    decay = jnp.maximum(jnp.where(x.advantages >= 0, decay_up, decay_down), 1e-4)
    weight = jnp.exp(decay + power * log_weight - decay * jnp.exp(log_weight))
    return TokenLoss(-weight * x.advantages * x.logprobs, {"sequence_weight": weight})


def clip_cov(
    x: Tokens, *, clip_low: Number = 0.2, clip_high: Number = 0.2, log_ratio_limit: Number = 20.0
) -> TokenLoss:
    """The clipped surrogate, and no loss for the tokens that `rl.algorithms.covariance` chose (Clip-Cov,
    arXiv:2505.22617): those that would cost the most entropy.

    Args:
        clip_low: the ratio is clipped below at `1 - clip_low`.
        clip_high: and above at `1 + clip_high`.
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    clipped = clip(x, clip_low=clip_low, clip_high=clip_high, log_ratio_limit=log_ratio_limit)
    return clipped._replace(loss=jnp.where(x.chosen, 0.0, clipped.loss))


def kl_cov(x: Tokens, *, chosen_kl_weight: Number = 1.0, log_ratio_limit: Number = 20.0) -> TokenLoss:
    """`-A r`, and `chosen_kl_weight * |log r|` on the tokens that `rl.algorithms.covariance` chose (KL-Cov,
    arXiv:2505.22617).

    Args:
        chosen_kl_weight: weight of the absolute log-ratio on those tokens.
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    log_ratio = log_ratios(x, "token", log_ratio_limit)
    held = jnp.where(x.chosen, chosen_kl_weight * magnitude(log_ratio), 0.0)
    return TokenLoss(held - x.advantages * jnp.exp(log_ratio), {})


def distil(x: Tokens, *, distil_weight: Number = 1.0, log_ratio_limit: Number = 20.0) -> TokenLoss:
    """`-(A + distil_weight sg(log q - log p)) r`, where `q` is the teacher's probability of the token (on-policy
    distillation, Thinking Machines 2025; on policy `rl.algorithms.distillation.policy_gradient_of_kl`).

    Args:
        distil_weight: of the log of the teacher's over the policy's probability, in nats, beside the advantage.
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    behind = x.reference_logprobs - jax.lax.stop_gradient(x.logprobs)
    taught = x._replace(advantages=x.advantages + distil_weight * behind)
    return importance(taught, log_ratio_limit=log_ratio_limit)._replace(metrics={"kl_teacher": -behind})


def distil_self(x: Tokens, *, distil_weight: Number = 1.0, log_ratio_limit: Number = 20.0) -> TokenLoss:
    """`distil`, where `q` is the policy's own probability of the token behind a prompt that tells more
    (`rl.algorithms.privileged`; SDFT, arXiv:2601.19897; SDPO, arXiv:2601.20802).

    Args:
        distil_weight: of the log of the teacher's over the policy's probability, in nats, beside the advantage.
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    return distil(x, distil_weight=distil_weight, log_ratio_limit=log_ratio_limit)


def distil_top(
    x: Tokens,
    *,
    divergence: Divergence = "forward",
    top: int = 16,
    mixture: Number = 0.5,
    tail: Tail = "bucket",
    distil_weight: Number = 1.0,
    log_ratio_limit: Number = 20.0,
) -> TokenLoss:
    """`distil_weight D(q, p) - A r`: the divergence of the policy `p` from the teacher `q` in the place of each sampled
    token, over the teacher's likeliest tokens (GKD, arXiv:2306.13649; `rl.algorithms.distillation.apart_on_top`).

    The gradient goes through the policy's probabilities of all these tokens, not through the sampled one alone as in
    `distil`: it has less noise, and costs 8 bytes per token of the batch and token compared. Where another policy
    sampled, it is of the places where that one was; there is no ratio.

    Args:
        divergence: forward KL(q || p), reverse KL(p || q), or jensen_shannon, of both from their mixture.
        top: how many of the teacher's likeliest tokens are compared.
        mixture: the teacher's share of the mixture, above 0 and below 1; GKD's beta.
        tail: all other tokens are one more (bucket), or those compared are made to sum to 1 (drop).
        distil_weight: of the divergence, in nats, beside the advantage.
        log_ratio_limit: log-ratios (nats) are clamped to ± this.

    Raises:
        ValueError: when the batch has nothing of a teacher to compare with.
    """
    if x.top_logprobs is None or x.teacher_top_logprobs is None:
        raise ValueError("the loss compares with a teacher's likeliest tokens, but the batch has none")
    apart = apart_on_top(x.top_logprobs, x.teacher_top_logprobs, kind=divergence, mixture=mixture, tail=tail)
    rewarded = importance(x, log_ratio_limit=log_ratio_limit)
    seen = jnp.exp(x.teacher_top_logprobs).sum(axis=-1)
    return TokenLoss(rewarded.loss + distil_weight * apart, {"divergence_teacher": apart, "teacher_top": seen})


def distil_top_self(
    x: Tokens,
    *,
    divergence: Divergence = "forward",
    top: int = 16,
    mixture: Number = 0.5,
    tail: Tail = "bucket",
    distil_weight: Number = 1.0,
    log_ratio_limit: Number = 20.0,
) -> TokenLoss:
    """`distil_top`, where `q` is the policy itself behind a prompt that tells more (`rl.algorithms.privileged`; SDFT,
    arXiv:2601.19897; SDPO, arXiv:2601.20802).

    Args:
        divergence: forward KL(q || p), reverse KL(p || q), or jensen_shannon, of both from their mixture.
        top: how many of the teacher's likeliest tokens are compared.
        mixture: the teacher's share of the mixture, above 0 and below 1; GKD's beta.
        tail: all other tokens are one more (bucket), or those compared are made to sum to 1 (drop).
        distil_weight: of the divergence, in nats, beside the advantage.
        log_ratio_limit: log-ratios (nats) are clamped to ± this.
    """
    return distil_top(
        x,
        divergence=divergence,
        top=top,
        mixture=mixture,
        tail=tail,
        distil_weight=distil_weight,
        log_ratio_limit=log_ratio_limit,
    )


LOSSES: Mapping[str, Loss] = {
    "clip": clip,
    "reinforce": reinforce,
    "importance": importance,
    "cispo": cispo,
    "sapo": sapo,
    "gmpo": gmpo,
    "dppo_tv": dppo_tv,
    "dppo_kl": dppo_kl,
    "ipo": ipo,
    "dro": dro,
    "topr": topr,
    "vespo": vespo,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
    "distil": distil,
    "distil_self": distil_self,
    "distil_top": distil_top,
    "distil_top_self": distil_top_self,
}
TAUGHT = (distil, distil_top)
"""Losses that need a teacher: its log-probabilities stand where those of the reference do."""
SELF_TAUGHT = {distil_self: privilege, distil_top_self: privilege}
"""Losses whose teacher is the policy itself, and what says how, with settings that belong to the algorithm."""
COMPARING = (distil_top, distil_top_self)
"""Losses that read a teacher's likeliest tokens, as many as their argument `top` says."""
