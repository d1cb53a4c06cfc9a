"""Credit within a rollout: per token or per turn. `mask` is 1 on tokens that count; rows are rollouts."""

import numpy as np
from jaxtyping import Float, Shaped


def discounted_returns(
    rewards: Float[np.ndarray, "B T"], mask: Shaped[np.ndarray, "B T"], *, discount: float = 1.0
) -> Float[np.ndarray, "B T"]:
    """`R_t = r_t + discount * R_t'`, where `t'` is the next token of the mask. Zero outside it."""
    returns = np.zeros_like(rewards)
    running = np.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        running = np.where(mask[:, t] > 0, rewards[:, t] + discount * running, running)
        returns[:, t] = running
    return returns * (mask > 0)


def turn_returns(rewards: Float[np.ndarray, "turns"], *, discount: float = 1.0) -> Float[np.ndarray, "turns"]:
    """What each turn of a rollout leads to: its reward and the later ones, discounted per turn."""
    one_row = rewards[None].astype(np.float64)
    return discounted_returns(one_row, np.ones_like(one_row), discount=discount)[0]


def generalised_advantages(
    rewards: Float[np.ndarray, "B T"],
    values: Float[np.ndarray, "B T"],
    mask: Shaped[np.ndarray, "B T"],
    *,
    discount: float = 1.0,
    trace: float = 0.95,
    skip_masked: bool = True,
) -> tuple[Float[np.ndarray, "B T"], Float[np.ndarray, "B T"]]:
    """GAE (arXiv:1506.02438): `A_t = sum_k (discount * trace)^k * delta_(t+k)`; advantages, and returns `A + V`.

    Args:
        rewards: per token.
        values: a critic's, of the state before each token.
        mask: tokens of the policy.
        discount: of the value of the next token.
        trace: lambda; 1 is Monte Carlo, 0 one step ahead.
        skip_masked: tokens outside the mask (a tool's answer) do not exist, and the token before them leads to the one
            after them, as in verl; otherwise the mask plays no part, as in SkyRL and OpenRLHF.

    Neither is whitened, and outside the mask they mean nothing.
    """
    advantages = np.zeros_like(rewards)
    following, running = np.zeros(len(rewards)), np.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        counts = mask[:, t] > 0 if skip_masked else np.ones(len(rewards), bool)
        delta = rewards[:, t] + discount * following - values[:, t]
        running = np.where(counts, delta + discount * trace * running, running)
        following = np.where(counts, values[:, t], following)
        advantages[:, t] = running
    return advantages, advantages + values


def optimal_token_baseline(
    returns: Float[np.ndarray, "B T"],
    logprobs: Float[np.ndarray, "B T"],
    squared_probs: Float[np.ndarray, "B T"],
    mask: Shaped[np.ndarray, "B T"],
    groups: Shaped[np.ndarray, "B"],
    *,
    epsilon: float = 1e-8,
) -> Float[np.ndarray, "B T"]:
    """Returns minus the baseline of least variance at each token, over the rollouts of a task (verl's `otb`).

    A rollout weighs by the squared norm of its score function so far, for a softmax `sum_t (1 - 2 p_t + sum_v p_v^2)`.
    Where only the longest rollout is left, it keeps its returns; so does one without others.

    Args:
        returns: to go, per token.
        logprobs: of the sampled tokens.
        squared_probs: `sum over the vocabulary of p^2` at each token.
        mask: tokens that count.
        groups: the task of each rollout.
        epsilon: added to the sum of weights.
    """
    weight = np.cumsum((1.0 - 2.0 * np.exp(logprobs) + squared_probs) * mask, axis=1)
    baselines = np.zeros_like(returns)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        if len(rows) == 1:
            continue
        counted = weight[rows] * mask[rows]
        baselines[rows] = (returns[rows] * counted).sum(axis=0) / (counted.sum(axis=0) + epsilon)
        lengths = mask[rows].sum(axis=1)
        second, longest = np.sort(lengths)[-2:]
        if longest > second:
            baselines[rows[lengths.argmax()], int(second) :] = 0.0
    return (returns - baselines) * mask
