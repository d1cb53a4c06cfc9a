"""From the rewards of a group (G rollouts of one task) to advantages. `valid` marks the rollouts that have a reward."""

import numpy as np
from jaxtyping import Bool, Float


def group_mean_baseline(
    rewards: Float[np.ndarray, "P G"],
    valid: Bool[np.ndarray, "P G"],
    *,
    normalise_std: bool = True,
    epsilon: float = 1e-6,
) -> Float[np.ndarray, "P G"]:
    """`(r - mean) / (std + epsilon)` in each group (GRPO, arXiv:2402.03300; without std: Dr. GRPO, arXiv:2503.20783).

    The standard deviation is the unbiased one (ddof=1), as in every reference implementation. Rollouts that are not
    `valid` neither count nor get an advantage; a group with fewer than two valid rollouts gets zeros.
    """
    count = valid.sum(axis=1, keepdims=True)
    r = np.where(valid, rewards, 0.0)
    centred = np.where(valid, r - r.sum(axis=1, keepdims=True) / np.maximum(count, 1), 0.0)
    if normalise_std:
        variance = (centred**2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1)
        centred = centred / (np.sqrt(variance) + epsilon)
    return np.where(count >= 2, centred, 0.0)


def leave_one_out_baseline(
    rewards: Float[np.ndarray, "P G"], valid: Bool[np.ndarray, "P G"]
) -> Float[np.ndarray, "P G"]:
    """`r - mean of the others` within each group (RLOO, arXiv:2402.14740)."""
    count = valid.sum(axis=1, keepdims=True)
    centred = group_mean_baseline(rewards, valid, normalise_std=False)
    return centred * count / np.maximum(count - 1, 1)
