"""Credit: from how the rollouts of a step ended to an advantage for each, as configs name it.

Each is one function `credit(outcomes, **settings) -> [P, G]` on the host; the maths is in `rl.ops.advantages`. It runs
outside the compiled update: a sweep over its numbers compiles nothing although they are not traced. Some give every
token an advantage of its own, `[P, G, T]` (`rl.algorithms.token_credit`), and some ask for more than rewards (`asks`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from rl.algorithms.base import Outcomes, asks
from rl.algorithms.token_credit import gae, optimal_token, turn_level
from rl.ops import advantages as ops

Advantages = Float[np.ndarray, "P G"]


def group_mean(x: Outcomes, *, normalise_std: bool = True, std_over: Literal["group", "batch"] = "group") -> Advantages:
    """`(r - mean of the group) / std` (GRPO, arXiv:2402.03300).

    Args:
        normalise_std: divide by the standard deviation.
        std_over: group or batch (TRL's `scale_rewards`, arXiv:2508.08221).
    """
    return ops.group_mean_baseline(x.rewards, x.valid, normalise_std=normalise_std, std_over=std_over)


def leave_one_out(x: Outcomes) -> Advantages:
    """`r - mean of the others in the group` (RLOO, arXiv:2402.14740)."""
    return ops.leave_one_out_baseline(x.rewards, x.valid)


def no_baseline(x: Outcomes) -> Advantages:
    """The reward itself (REINFORCE)."""
    return np.where(x.valid, x.rewards, 0.0)


def nothing(x: Outcomes) -> Advantages:
    """0: rewards are observed, and something else teaches."""
    return np.zeros_like(x.rewards)


def batch_mean(x: Outcomes, *, group_baseline: bool = False) -> Advantages:
    """Rewards with mean 0 and deviation 1 over all tokens of the batch (REINFORCE++, arXiv:2501.03262).

    Args:
        group_baseline: take off the group's mean first (REINFORCE++ with baseline).
    """
    rewards = np.where(x.valid, x.rewards, 0.0)
    if group_baseline:
        rewards = ops.group_mean_baseline(x.rewards, x.valid, normalise_std=False)
    return ops.whiten(rewards, np.where(x.valid, x.tokens, 0))


def length_weighted(x: Outcomes) -> Advantages:
    """`r - mean weighted by length` (OPO, arXiv:2505.23585)."""
    return ops.optimal_reward_baseline(x.rewards, x.valid, x.tokens)


def success_scaled(x: Outcomes) -> Advantages:
    """`(r - mean) * rollouts / rollouts with a reward` (GPG, arXiv:2504.02546)."""
    return ops.group_policy_gradient(x.rewards, x.valid)


def mean_normalised(x: Outcomes) -> Advantages:
    """`(r - mean) / mean` (MaxRL, arXiv:2602.02710), for rewards that are not negative."""
    return ops.mean_normalised(x.rewards, x.valid)


def best_of_group(x: Outcomes, *, normalise_std: bool = True) -> Advantages:
    """The lead of the best rollout over the second best, 0 for the others (pass@k, arXiv:2503.19595).

    Args:
        normalise_std: divide by the group's standard deviation.
    """
    return ops.best_of_group(x.rewards, x.valid, normalise_std=normalise_std)


def several_rewards(x: Outcomes, *, reward_weights: Mapping[str, float] | None = None) -> Advantages:
    """Each reward function normalised in its group, their sum over the batch (GDPO, arXiv:2601.05242).

    Args:
        reward_weights: of each reward function, by name; null counts all alike.
    """
    summed = ops.several_rewards(x.components or {"reward": x.rewards}, x.valid, weights=reward_weights)
    return ops.whiten(summed, np.where(x.valid, x.tokens, 0))


@asks("greedy")
def greedy_baseline(x: Outcomes) -> Advantages:
    """`r - reward of the greedy answer`, for which one more rollout of each task is made (ReMax, arXiv:2310.10505)."""
    if x.greedy is None:
        raise ValueError("no greedy rollouts were made; credit by them needs Outcomes.greedy")
    has_one = np.isfinite(x.greedy)  # a task whose greedy rollout failed takes no part
    return ops.greedy_baseline(x.rewards, x.valid & has_one[:, None], np.where(has_one, x.greedy, 0.0))


def moving_baseline(x: Outcomes, *, baseline_decay: float = 0.95) -> Advantages:
    """`r - b`, where each environment's `b` follows its mean reward, itself included (RAE of SPIRAL, arXiv:2506.24119).

    Args:
        baseline_decay: share of the old `b` that is kept, per update; `b` begins at 0.
    """
    return ops.moving_baseline(x.rewards, x.valid, _keys(x), x.kept, decay=baseline_decay)[0]


def moved_baselines(x: Outcomes, *, baseline_decay: float = 0.95) -> Mapping[str, float]:
    """Where the baselines of `moving_baseline` then stand."""
    return ops.moving_baseline(x.rewards, x.valid, _keys(x), x.kept, decay=baseline_decay)[1]


def _keys(x: Outcomes) -> list[str]:
    return [*x.environments] or [""] * len(x.rewards)


CREDITS: Mapping[str, Callable[..., Any]] = {
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
    "no_baseline": no_baseline,
    "nothing": nothing,
    "batch_mean": batch_mean,
    "length_weighted": length_weighted,
    "success_scaled": success_scaled,
    "mean_normalised": mean_normalised,
    "best_of_group": best_of_group,
    "several_rewards": several_rewards,
    "greedy_baseline": greedy_baseline,
    "moving_baseline": moving_baseline,
    "turn_level": turn_level,
    "optimal_token": optimal_token,
    "gae": gae,
}

KEEPS: Mapping[Callable[..., Any], Callable[..., Mapping[str, float]]] = {moving_baseline: moved_baselines}
"""What credit keeps for the next step, by the function that finds it again in `Outcomes.kept`."""


def overlong(x: Outcomes, *, overlong_limit: float = 1024.0, overlong_margin: float = 256.0) -> Advantages:
    """DAPO's soft punishment of length (arXiv:2503.14476): up to -1, over the last tokens before the limit.

    Args:
        overlong_limit: tokens at which the whole of it applies.
        overlong_margin: tokens before that over which it grows.
    """
    return ops.overlong_penalty(x.tokens, limit=overlong_limit, margin=overlong_margin)


def per_token(x: Outcomes, *, length_penalty_rate: float = 1e-3, length_penalty_free: float = 0.0) -> Advantages:
    """So much reward for every token less.

    Args:
        length_penalty_rate: reward per token.
        length_penalty_free: tokens that cost nothing.
    """
    return ops.linear_length_penalty(x.tokens, per_token=length_penalty_rate, free=length_penalty_free)


LENGTH_PENALTIES: Mapping[str, Callable[..., Advantages]] = {"overlong": overlong, "per_token": per_token}
"""What may be added to the rewards before credit is given."""
