"""Credit for single tokens and turns of a rollout: functions as in `rl.algorithms.credit`, giving `[P, G, T]`.

A rollout is rewarded at the end of its turns: with what `Outcomes.turn_rewards` says, and after the last one with the
rest. Everything in between is discounted, by token or by turn.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from rl.algorithms.base import Outcomes, asks
from rl.ops.advantages import whiten
from rl.ops.returns import discounted_returns, generalised_advantages, optimal_token_baseline
from rl.ops.values import value_loss
from rl.types import Number

PerToken = Float[np.ndarray, "P G T"]
Kind = Literal["shared", "separate"]


def turn_level(x: Outcomes, *, turn_discount: float = 1.0, normalise_std: bool = True) -> PerToken:
    """`(R_k - mean) / std`, where `R_k` is what turn `k` leads to, its reward and the later ones, seen beside the `k`th
    turns of the group (MT-GRPO, arXiv:2505.11821; with a single turn it is GRPO).

    Args:
        turn_discount: of what comes a turn later.
        normalise_std: divide by the standard deviation.
    """
    rewards, turns = turn_rewards(x), _turn_tokens(x)
    P, G, K = turns.shape
    everything = np.ones((P * G, K))
    returns = discounted_returns(rewards.reshape(P * G, K), everything, discount=turn_discount).reshape(P, G, K)
    there = (turns > 0) & x.valid[..., None]
    count = there.sum(axis=1, keepdims=True)
    centred = np.where(there, returns - np.where(there, returns, 0.0).sum(1, keepdims=True) / np.maximum(count, 1), 0.0)
    if normalise_std:
        centred = centred / (np.sqrt((centred**2).sum(1, keepdims=True) / np.maximum(count - 1, 1)) + 1e-6)
    return _by_token(x, np.where(count >= 2, centred, 0.0))


@asks("logprobs", "squared_probs")
def optimal_token(x: Outcomes) -> PerToken:
    """The return to go less the baseline of least variance at that token (OTB, arXiv:2602.07078): the group's, weighted
    by how far each rollout has turned the policy up to there."""
    rewards = token_rewards(x)
    P, G, T = rewards.shape
    mask = _sampled(x)
    told = {name: x.per_token[name].reshape(P * G, T) for name in ("logprobs", "squared_probs")}
    rows = mask.reshape(P * G, T)
    returns = discounted_returns(rewards.reshape(P * G, T), rows)
    groups = np.where(x.valid, np.arange(P)[:, None], -1 - np.arange(P * G).reshape(P, G))  # the others are alone
    found = optimal_token_baseline(returns, told["logprobs"], told["squared_probs"], rows, groups.reshape(P * G))
    compared = x.valid & (x.valid.sum(axis=1, keepdims=True) >= 2)
    return np.where(compared[..., None], found.reshape(P, G, T), 0.0)


@asks("values")
def gae(x: Outcomes, *, discount: float = 1.0, trace: float = 1.0, whitened: bool = True) -> PerToken:
    """Generalised advantages (arXiv:1506.02438) over the tokens that the policy sampled, prompts and answers of tools
    skipped, by what a critic expects of each.

    Args:
        discount: of what comes a token later.
        trace: lambda: 1 compares with what came in the end, 0 with what the critic says one token later.
        whitened: give them mean 0 and deviation 1 over the batch.
    """
    advantages = _generalised(x, discount, trace)
    return whiten(advantages, _sampled(x)) if whitened else advantages


def gae_targets(x: Outcomes, *, discount: float = 1.0, value_trace: float = 1.0) -> PerToken:
    """What the critic should have said: advantage and value together, with a trace of their own (VC-PPO,
    arXiv:2503.01491).

    Args:
        discount: of what comes a token later.
        value_trace: lambda of these: 1 is what came in the end, without the critic's own bias.
    """
    return np.where(_sampled(x), _generalised(x, discount, value_trace) + x.per_token["values"], 0.0)


def value_error(
    values: Float[Array, "R L"],
    old_values: Float[Array, "R L"],
    returns: Float[Array, "R L"],
    *,
    value_weight: Number = 0.5,
    value_clip: Number | None = None,
) -> tuple[Float[Array, "R L"], Float[Array, "R L"]]:
    """What is added to the loss for the critic, and its error by itself.

    Args:
        value_weight: of the critic's error in the loss.
        value_clip: how far a value may move in one update before its gradient stops; null: any way.
    """
    error = value_loss(values, old_values, returns, clip=value_clip)
    return value_weight * error, error


def critic_rate(lr: jax.Array, *, critic_lr: Number = 1.0) -> jax.Array:
    """The learning rate of the critic's own parameters.

    Args:
        critic_lr: the critic's learning rate, in units of the policy's.
    """
    return lr * critic_lr


def critic_kind(*, critic: Kind = "separate") -> Kind:
    """Where the critic computes.

    Args:
        critic: separate: with layers of its own, which begin as the policy's; shared: a head on the policy's.
    """
    return critic


class CriticParts(NamedTuple):
    """The functions of a critic, whose settings belong to the algorithm."""

    kind: Callable[..., Kind]
    targets: Callable[..., PerToken]
    error: Callable[..., tuple[jax.Array, jax.Array]]
    rate: Callable[..., jax.Array]


CRITICS: Mapping[Callable[..., PerToken], CriticParts] = {
    gae: CriticParts(critic_kind, gae_targets, value_error, critic_rate)
}
"""By the credit that needs one."""


def turn_rewards(x: Outcomes) -> Float[np.ndarray, "P G K"]:
    """What each turn was rewarded with; what no turn was, the last one is."""
    turns = _turn_tokens(x)
    rewards = np.zeros(turns.shape) if x.turn_rewards is None else np.where(x.valid[..., None], x.turn_rewards, 0.0)
    last = turns.shape[2] - 1 - (turns[..., ::-1] > 0).argmax(axis=2)
    rest = np.where(x.valid, x.rewards, 0.0) - rewards.sum(axis=2)
    return rewards + rest[..., None] * (np.arange(turns.shape[2]) == last[..., None])


def token_rewards(x: Outcomes) -> PerToken:
    """The same at the last token of each turn, less what tokens cost (`Outcomes.per_token["costs"]`)."""
    rewards, ends = turn_rewards(x), np.maximum(np.cumsum(_turn_tokens(x), axis=2) - 1, 0)
    result = np.zeros(_sampled(x).shape)
    for p, g, k in np.argwhere(rewards != 0):
        result[p, g, ends[p, g, k]] += rewards[p, g, k]
    return result - x.per_token.get("costs", np.zeros(()))


def _generalised(x: Outcomes, discount: float, trace: float) -> PerToken:
    if "values" not in x.per_token:
        raise ValueError("no critic was asked; credit by one needs Outcomes.per_token['values']")
    P, G, T = (rewards := token_rewards(x)).shape
    rows, mask = (P * G, T), _sampled(x)
    found, _ = generalised_advantages(
        rewards.reshape(rows),
        np.asarray(x.per_token["values"], np.float64).reshape(rows),
        mask.reshape(rows),
        discount=discount,
        trace=trace,
    )
    return np.where(mask, found.reshape(P, G, T), 0.0)


def _turn_tokens(x: Outcomes) -> np.ndarray:
    """How many tokens each turn sampled `[P, G, K]`; where nothing is told, all were in one."""
    turns = x.tokens[..., None] if x.turn_tokens is None else x.turn_tokens
    return np.where(x.valid[..., None], turns, 0)


def _sampled(x: Outcomes) -> Bool[np.ndarray, "P G T"]:
    """Which tokens there are."""
    length = max(int(x.tokens.max(initial=0)), *(table.shape[2] for table in x.per_token.values()), 0)
    return (np.arange(length) < x.tokens[..., None]) & x.valid[..., None]


def _by_token(x: Outcomes, by_turn: Float[np.ndarray, "P G K"]) -> PerToken:
    """What is said about each turn, at its tokens."""
    turns, result = _turn_tokens(x), np.zeros(_sampled(x).shape)
    for place in np.argwhere(x.valid):
        tokens = np.repeat(by_turn[tuple(place)], turns[tuple(place)])
        result[(*place, slice(0, len(tokens)))] = tokens
    return result
