"""Losses over pairs of answers, of which one is preferred: DPO and its relatives, and reward models.

All take one number per pair (log-probabilities of whole answers, or a reward model's scores) and give a loss per
pair; the caller averages. `chosen` and `rejected` of a margin are `log policy - log reference`.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl.types import Number

PerPair = Float[Array, "B"]


def dpo(chosen: PerPair, rejected: PerPair, *, beta: Number = 0.1, label_smoothing: Number = 0.0) -> PerPair:
    """`-log sigmoid(beta (chosen - rejected))` (DPO, arXiv:2305.18290); with `label_smoothing`, the chance that a label
    is wrong, cDPO (Mitchell 2023). With margins per token, TRL's `sigmoid_norm`."""
    margin = beta * (chosen - rejected)
    return -(1.0 - label_smoothing) * jax.nn.log_sigmoid(margin) - label_smoothing * jax.nn.log_sigmoid(-margin)


def robust_dpo(chosen: PerPair, rejected: PerPair, *, beta: Number = 0.1, label_smoothing: Number = 0.1) -> PerPair:
    """DPO without the bias of wrong labels (rDPO, arXiv:2403.00409); `label_smoothing` below 0.5."""
    margin = beta * (chosen - rejected)
    right, wrong = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
    return ((1.0 - label_smoothing) * right - label_smoothing * wrong) / (1.0 - 2.0 * label_smoothing)


def hinge(chosen: PerPair, rejected: PerPair, *, beta: Number = 0.1) -> PerPair:
    """`max(0, 1 - beta (chosen - rejected))` (SLiC, arXiv:2305.10425)."""
    return jax.nn.relu(1.0 - beta * (chosen - rejected))


def ipo(chosen: PerPair, rejected: PerPair, *, beta: Number = 0.1) -> PerPair:
    """`(chosen - rejected - 1 / (2 beta))^2` (IPO, arXiv:2310.12036). TRL takes margins per token, OpenRLHF sums."""
    return (chosen - rejected - 1.0 / (2.0 * beta)) ** 2


def exo_pair(chosen: PerPair, rejected: PerPair, *, beta: Number = 0.1, label_smoothing: Number = 1e-3) -> PerPair:
    """Reverse KL from the policy's preference to the smoothed label (EXO, arXiv:2402.00856)."""
    margin = beta * (chosen - rejected)
    log_win, log_lose = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    wins = jnp.exp(log_win) * (log_win - jnp.log1p(-label_smoothing))
    return wins + jnp.exp(log_lose) * (log_lose - jnp.log(label_smoothing))


def nca_pair(chosen: PerPair, rejected: PerPair, *, beta: Number = 0.1) -> PerPair:
    """Noise contrastive alignment for pairs (NCA, arXiv:2402.05369)."""
    good, bad = beta * chosen, beta * rejected
    return -jax.nn.log_sigmoid(good) - 0.5 * jax.nn.log_sigmoid(-good) - 0.5 * jax.nn.log_sigmoid(-bad)


def bco_pair(chosen: PerPair, rejected: PerPair, *, beta: Number = 0.1) -> PerPair:
    """Each answer classified by itself (BCO, arXiv:2404.04656, without its moving reward shift)."""
    return -jax.nn.log_sigmoid(beta * chosen) - jax.nn.log_sigmoid(-beta * rejected)


def sppo_hard(chosen: PerPair, rejected: PerPair, *, beta: Number = 0.1) -> PerPair:
    """Margins pulled to ± 1 / (2 beta) (SPPO with hard labels, arXiv:2405.00675)."""
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def aot(chosen: PerPair, rejected: PerPair, *, beta: Number = 0.1, label_smoothing: Number = 0.0) -> PerPair:
    """DPO of sorted margins: one distribution above the other (AOT, arXiv:2406.05882).

    Unpaired: pass the margins; paired (TRL's `aot`): pass `policy chosen - policy rejected`, and the reference's as
    `rejected`."""
    return dpo(jnp.sort(chosen), jnp.sort(rejected), beta=beta, label_smoothing=label_smoothing)


def apo_zero(chosen: PerPair, rejected: PerPair, *, beta: Number = 0.1) -> PerPair:
    """Chosen answers up, rejected ones down (APO-zero, arXiv:2408.06266)."""
    return 1.0 - jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(beta * rejected)


def apo_down(chosen: PerPair, rejected: PerPair, *, beta: Number = 0.1) -> PerPair:
    """Both down, rejected ones further (APO-down, arXiv:2408.06266)."""
    return jax.nn.sigmoid(beta * chosen) + 1.0 - jax.nn.sigmoid(beta * (chosen - rejected))


def discopop(chosen: PerPair, rejected: PerPair, *, beta: Number = 0.1, tau: Number = 0.05) -> PerPair:
    """Logistic and exponential loss, mixed by the margin (DiscoPOP, arXiv:2406.08414)."""
    margin = beta * (chosen - rejected)
    mixture = jax.nn.sigmoid(margin / tau)
    return -jax.nn.log_sigmoid(margin) * (1.0 - mixture) + jnp.exp(-margin) * mixture


def simpo(chosen: PerPair, rejected: PerPair, *, beta: Number = 2.0, gamma: Number = 1.0) -> PerPair:
    """`-log sigmoid(beta (chosen - rejected) - gamma)` of mean log-probabilities per token, without a reference (SimPO,
    arXiv:2405.14734)."""
    return -jax.nn.log_sigmoid(beta * (chosen - rejected) - gamma)


def orpo(chosen: PerPair, rejected: PerPair, *, beta: Number = 0.1) -> PerPair:
    """`-chosen - beta log sigmoid(log odds ratio)` of mean log-probabilities per token (ORPO, arXiv:2403.07691)."""

    def log_odds(logprobs: PerPair) -> PerPair:
        certain = jnp.minimum(logprobs, -1e-6)  # the odds of a probability of one are infinite
        return certain - jnp.log1p(-jnp.exp(certain))

    return -chosen - beta * jax.nn.log_sigmoid(log_odds(chosen) - log_odds(rejected))


def kto(
    margins: PerPair,
    desirable: Float[Array, "B"],
    kl: Float[Array, ""],
    *,
    beta: Number = 0.1,
    weight_good: Number = 1.0,
    weight_bad: Number = 1.0,
) -> PerPair:
    """Answers that are good or bad by themselves (KTO, arXiv:2402.01306): `w (1 - sigmoid(± beta (margin - kl)))`.

    Args:
        margins: `log policy - log reference` of each answer.
        desirable: 1 for good, 0 for bad.
        kl: the divergence that margins are seen against, never negative and without gradient; 0 is TRL's APO-zero.
        beta: scale.
        weight_good: of good answers.
        weight_bad: of bad ones.
    """
    sign = 2.0 * desirable - 1.0
    weight = jnp.where(desirable > 0, weight_good, weight_bad)
    return weight * (1.0 - jax.nn.sigmoid(sign * beta * (margins - jax.lax.stop_gradient(kl))))


def bradley_terry(chosen: PerPair, rejected: PerPair, *, margin: Number = 0.0) -> PerPair:
    """`-log sigmoid(chosen - rejected - margin)` of a reward model's scores (Bradley and Terry; arXiv:2203.02155)."""
    return -jax.nn.log_sigmoid(chosen - rejected - margin)


PAIRWISE: Mapping[str, Callable[..., PerPair]] = {
    "dpo": dpo, "robust_dpo": robust_dpo, "hinge": hinge, "ipo": ipo, "exo_pair": exo_pair, "nca_pair": nca_pair,
    "bco_pair": bco_pair, "sppo_hard": sppo_hard, "aot": aot, "apo_zero": apo_zero, "apo_down": apo_down,
    "discopop": discopop, "simpo": simpo, "orpo": orpo, "bradley_terry": bradley_terry,
}  # fmt: skip
"""Losses of two numbers per pair."""
