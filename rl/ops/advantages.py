"""From the rewards of groups (G rollouts of one task) to advantages. `valid` marks the rollouts that have a reward.

All of them: rollouts that are not valid neither count nor get an advantage, whatever their reward holds.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped

Lone = Literal["zero", "reward"]
"""What a rollout without others to compare with gets: nothing, or (verl, SkyRL) its reward."""


def group_mean_baseline(
    rewards: Float[np.ndarray, "P G"],
    valid: Bool[np.ndarray, "P G"],
    *,
    normalise_std: bool = True,
    epsilon: float = 1e-6,
    std_over: Literal["group", "batch"] = "group",
    lone: Lone = "zero",
) -> Float[np.ndarray, "P G"]:
    """`(r - mean) / (std + epsilon)` in each group (GRPO, arXiv:2402.03300; without std: Dr. GRPO, arXiv:2503.20783).

    The standard deviation is the unbiased one (ddof=1), as in every reference implementation.

    Args:
        rewards: one per rollout.
        valid: which of them count.
        normalise_std: divide by the standard deviation.
        epsilon: added to it.
        std_over: the deviation within the group, or of all rewards of the batch (TRL's `scale_rewards="batch"`).
        lone: for groups with a single valid rollout.
    """
    count, r, mean = _moments(rewards, valid)
    centred = np.where(valid, r - mean, 0.0)
    if normalise_std and std_over == "batch":
        centred = centred / (np.std(r[valid], ddof=1) + epsilon if valid.sum() > 1 else 1.0)
    elif normalise_std:
        variance = (centred**2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1)
        centred = centred / (np.sqrt(variance) + epsilon)
    alone = r / (1.0 + epsilon) if normalise_std else r
    return np.where(count >= 2, centred, alone if lone == "reward" else 0.0)


def leave_one_out_baseline(
    rewards: Float[np.ndarray, "P G"], valid: Bool[np.ndarray, "P G"], *, lone: Lone = "zero"
) -> Float[np.ndarray, "P G"]:
    """`r - mean of the others` within each group (RLOO, arXiv:2402.14740)."""
    count = valid.sum(axis=1, keepdims=True)
    centred = group_mean_baseline(rewards, valid, normalise_std=False, lone=lone)
    return centred * count / np.maximum(count - 1, 1)


def optimal_reward_baseline(
    rewards: Float[np.ndarray, "P G"],
    valid: Bool[np.ndarray, "P G"],
    tokens: Shaped[np.ndarray, "P G"],
    *,
    lone: Lone = "zero",
) -> Float[np.ndarray, "P G"]:
    """`r - sum(tokens * r) / sum(tokens)` in each group: the baseline of least variance if every token's gradient is as
    large as any other's (OPO, arXiv:2505.23585)."""
    count, r, _ = _moments(rewards, valid)
    lengths = np.where(valid, tokens, 0)
    baseline = (lengths * r).sum(axis=1, keepdims=True) / np.maximum(lengths.sum(axis=1, keepdims=True), 1)
    return np.where(valid & (count >= 2), r - baseline, r if lone == "reward" else 0.0)


def mean_normalised(
    rewards: Float[np.ndarray, "P G"], valid: Bool[np.ndarray, "P G"], *, epsilon: float = 1e-6, lone: Lone = "zero"
) -> Float[np.ndarray, "P G"]:
    """`(r - mean) / (mean + epsilon)` in each group: for rewards of 0 and 1, the gradient of the log-likelihood of
    succeeding (MaxRL, arXiv:2602.02710). Rewards are expected to be non-negative."""
    count, r, mean = _moments(rewards, valid)
    centred = np.where(valid, (r - mean) / (mean + epsilon), 0.0)
    return np.where(count >= 2, centred, r if lone == "reward" else 0.0)


def best_of_group(
    rewards: Float[np.ndarray, "P G"],
    valid: Bool[np.ndarray, "P G"],
    *,
    normalise_std: bool = True,
    epsilon: float = 1e-6,
) -> Float[np.ndarray, "P G"]:
    """The best rollout gets its lead over the second best, the others nothing: the gradient of the expected maximum
    (pass@k training, arXiv:2503.19595). The first of several equals counts as the best, with a lead of 0."""
    count, r, _ = _moments(rewards, valid)
    ranked = np.where(valid, r, -np.inf)
    best = ranked.argmax(axis=1)[:, None]
    second = np.sort(ranked, axis=1)[:, -2:-1] if r.shape[1] > 1 else np.full((len(r), 1), -np.inf)
    lead = np.where(count >= 2, np.take_along_axis(ranked, best, 1) - np.where(np.isfinite(second), second, 0.0), 0.0)
    if normalise_std:
        lead = lead / (_std(r, valid) + epsilon)
    return np.where(np.arange(r.shape[1])[None] == best, np.where(count >= 2, lead, 0.0), 0.0)


def group_policy_gradient(
    rewards: Float[np.ndarray, "P G"], valid: Bool[np.ndarray, "P G"], *, scale: float = 1.0, lone: Lone = "zero"
) -> Float[np.ndarray, "P G"]:
    """`alpha * (r - mean) / scale`, where `alpha` is the number of rollouts over that of those whose reward is not 0
    (GPG, arXiv:2504.02546): a batch in which little succeeds is not a smaller step."""
    _, r, _ = _moments(rewards, valid)
    alpha = valid.sum() / max(np.count_nonzero(r[valid]), 1)
    return alpha * group_mean_baseline(rewards, valid, normalise_std=False, lone=lone) / scale


def greedy_baseline(
    rewards: Float[np.ndarray, "P G"], valid: Bool[np.ndarray, "P G"], greedy: Float[np.ndarray, "P"]
) -> Float[np.ndarray, "P G"]:
    """`r - reward of the greedy answer` to the same task (ReMax, arXiv:2310.10505)."""
    return np.where(valid, np.where(valid, rewards, 0.0) - greedy[:, None], 0.0)


def whiten(
    values: Float[np.ndarray, "*shape"],
    weights: Shaped[np.ndarray, "*shape"],
    *,
    epsilon: float = 1e-8,
    unbiased: bool = True,
    epsilon_in_root: bool = True,
) -> Float[np.ndarray, "*shape"]:
    """Mean 0 and deviation 1 over the whole batch; entries of weight 0 neither count nor get a value.

    Args:
        values: per token, or per rollout.
        weights: the mask of the tokens, or how many tokens each rollout has, or which rollouts count.
        epsilon: keeps the division finite.
        unbiased: divide the sum of squares by `weight - 1`.
        epsilon_in_root: `sqrt(variance + epsilon)` (verl) rather than `sqrt(variance) + epsilon` (TRL, AReaL).
    """
    counted = np.where(weights > 0, values, 0.0)
    total = float(weights.sum())
    mean = (weights * counted).sum() / max(total, 1.0)
    variance = (weights * (counted - mean) ** 2).sum() / max(total - unbiased, 1.0)
    deviation = np.sqrt(variance + epsilon) if epsilon_in_root else np.sqrt(variance) + epsilon
    return np.where(weights > 0, (counted - mean) / deviation, 0.0)


def several_rewards(
    components: Mapping[str, Float[np.ndarray, "P G"]],
    valid: Bool[np.ndarray, "P G"],
    *,
    weights: Mapping[str, float] | None = None,
    epsilon: float = 1e-6,
    lone: Lone = "zero",
) -> Float[np.ndarray, "P G"]:
    """Each reward normalised within its group, then summed (the first half of GDPO, arXiv:2601.05242; `whiten` is the
    second): a reward of small spread says as much as one of large spread.

    Args:
        components: rewards by name.
        valid: which rollouts count.
        weights: of each reward; None counts all alike.
        epsilon: added to the standard deviations.
        lone: for groups with a single valid rollout.

    Raises:
        ValueError: when there is no reward, or a weight for one that is not there.
    """
    if not components or not set(weights or {}) <= set(components):
        raise ValueError(f"rewards are {sorted(components)}, weights are for {sorted(weights or {})}")
    return np.sum(
        [
            (1.0 if weights is None else weights.get(name, 0.0))
            * group_mean_baseline(rewards, valid, epsilon=epsilon, lone=lone)
            for name, rewards in components.items()
        ],
        axis=0,
    )


def moving_baseline(
    rewards: Float[np.ndarray, "P G"],
    valid: Bool[np.ndarray, "P G"],
    keys: list[str],
    baselines: Mapping[str, float],
    *,
    decay: float = 0.95,
) -> tuple[Float[np.ndarray, "P G"], dict[str, float]]:
    """`r - b[key]`, where each environment's (or role's) `b` follows the mean reward (RAE of SPIRAL, arXiv:2506.24119).

    `b` moves first, to `decay * b + (1 - decay) * mean`, as in the paper; it begins at 0.

    Args:
        rewards: one per rollout.
        valid: which of them count.
        keys: the environment of each task.
        baselines: what the last call returned.
        decay: of the old value, per call.

    Returns:
        Advantages, and the baselines for the next call.
    """
    after = dict(baselines)
    rows = np.array(keys)
    for key in dict.fromkeys(keys):
        here = valid & (rows == key)[:, None]
        if here.any():
            after[key] = decay * after.get(key, 0.0) + (1.0 - decay) * float(rewards[here].mean())
    baseline = np.array([after.get(key, 0.0) for key in keys])
    return np.where(valid, np.where(valid, rewards, 0.0) - baseline[:, None], 0.0), after


def overlong_penalty(
    tokens: Shaped[np.ndarray, "*shape"], *, limit: float, margin: float
) -> Float[np.ndarray, "*shape"]:
    """DAPO's soft punishment of length (arXiv:2503.14476, eq. 13), to be added to rewards: 0 up to `limit - margin`
    tokens, falling to -1 at `limit`, and -1 beyond."""
    return -np.clip((tokens - (limit - margin)) / max(margin, 1e-9), 0.0, 1.0)


def linear_length_penalty(
    tokens: Shaped[np.ndarray, "*shape"], *, per_token: float, free: float = 0.0
) -> Float[np.ndarray, "*shape"]:
    """`-per_token` for each token beyond the first `free`, to be added to rewards."""
    return -per_token * np.maximum(tokens - free, 0.0)


def _moments(
    rewards: Float[np.ndarray, "P G"], valid: Bool[np.ndarray, "P G"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per group: how many are valid `[P, 1]`; the rewards with 0 where they are not `[P, G]`; their mean `[P, 1]`."""
    count = valid.sum(axis=1, keepdims=True)
    r = np.where(valid, rewards, 0.0)
    return count, r, r.sum(axis=1, keepdims=True) / np.maximum(count, 1)


def _std(rewards: np.ndarray, valid: np.ndarray) -> np.ndarray:
    count, r, mean = _moments(rewards, valid)
    return np.sqrt((np.where(valid, r - mean, 0.0) ** 2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1))
