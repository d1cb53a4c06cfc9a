"""From trajectories to advantages: what an algorithm's credit is told, and where what it says goes."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from envs.types import GREEDY, Trajectory
from rl.algorithms.base import Algorithm, Outcomes
from rl.data.pack import Segment, segments, spread

Groups = Sequence[Sequence[Trajectory]]

PerToken = Callable[[list[Segment]], Mapping[str, list[np.ndarray]]]
"""By name, what is known about the sampled tokens of each of these segments."""


class Credited(NamedTuple):
    """Segments with their advantages, and what credit keeps for the next step."""

    segments: list[Segment]
    kept: Mapping[str, float]


def nothing(parts: list[Segment]) -> Mapping[str, list[np.ndarray]]:
    return {}


def credit(
    algorithm: Algorithm,
    groups: Groups,
    *,
    per_token: PerToken = nothing,
    environments: Sequence[str] = (),
    kept: Mapping[str, float] = {},
) -> Credited:
    """The groups as segments with their advantages; failed rollouts take no part.

    Args:
        algorithm: whose credit, and whose critic's targets.
        groups: per task its rollouts, perhaps its greedy one among them.
        per_token: what `algorithm.asks` for about tokens.
        environments: what each group is a task of.
        kept: what credit kept of the step before.
    """
    groups, ended = outcomes(groups)
    rollouts = [segments(t, routing=True) for t in usable(groups)]
    told = {
        name: [np.concatenate([next(left) for _ in parts] or [np.zeros(0)]) for parts in rollouts]
        for name, left in ((name, iter(each)) for name, each in per_token([*chain.from_iterable(rollouts)]).items())
    }
    tables = {name: _tabled(each, ended) for name, each in told.items()}
    ended = ended._replace(per_token=tables, environments=environments, kept=kept)
    advantages = algorithm.credit(ended)[ended.valid]
    targets = None if algorithm.critic is None else algorithm.critic.targets
    returns = None if targets is None else targets(ended)[ended.valid]
    for i, parts in enumerate(rollouts):
        if advantages.ndim == 1:
            for part in parts:
                part.advantage = float(advantages[i])
        else:
            for part, each in zip(parts, spread(parts, advantages[i].tolist()), strict=True):
                part.advantage = each
        if returns is not None:
            laid = zip(spread(parts, told["values"][i].tolist()), spread(parts, returns[i].tolist()), strict=True)
            for part, (value, target) in zip(parts, laid, strict=True):
                part.values, part.returns = value, target
    after = kept if algorithm.keep is None else algorithm.keep(ended)
    return Credited([*chain.from_iterable(rollouts)], after)


def usable(groups: Groups) -> list[Trajectory]:
    """The rollouts that are trained on, if nothing else is against it: not the greedy ones, nor those that failed."""
    return [t for group in groups for t in group if t.reward is not None and t.sample != GREEDY]


def rolled(groups: Groups) -> list[Segment]:
    """Their tokens, without credit."""
    return [*chain.from_iterable(segments(t) for t in usable(groups))]


def outcomes(groups: Groups) -> tuple[Groups, Outcomes]:
    """The groups without greedy rollouts, and what credit is given by, as arrays; failed rollouts are not valid and
    read 0."""
    greedy = [[t.reward for t in group if t.sample == GREEDY] for group in groups]
    groups = [[t for t in group if t.sample != GREEDY] for group in groups]
    names = sorted({name for group in groups for t in group for name in t.rewards})
    turns = max((len(t.turns) for group in groups for t in group), default=0)

    def table(value: Callable[[Trajectory], float]) -> np.ndarray:
        return np.array([[0.0 if t.reward is None else value(t) for t in group] for group in groups])

    def by_turn(values: Callable[[Trajectory], Sequence[float]]) -> np.ndarray:
        result = np.zeros((len(groups), max(map(len, groups), default=0), turns))
        for p, group in enumerate(groups):
            for g, t in enumerate(group):
                if t.reward is not None and (found := values(t)):
                    result[p, g, : len(found)] = found
        return result

    return groups, Outcomes(
        rewards=table(lambda t: t.reward or 0.0),
        valid=table(lambda t: 1.0) > 0,
        tokens=table(sampled_tokens).astype(np.int64),
        components={name: table(lambda t, name=name: t.rewards.get(name, 0.0)) for name in names},  # type: ignore[misc]
        turn_rewards=by_turn(lambda t: t.turn_rewards),
        turn_tokens=by_turn(tokens_by_turn).astype(np.int64),
        greedy=np.array([np.nan if not r or r[0] is None else r[0] for r in greedy]) if any(greedy) else None,
    )


def tokens_by_turn(trajectory: Trajectory) -> list[int]:
    """How many tokens the policy sampled in each turn of a rollout."""
    return [len(turn.completion.completion_ids or ()) for turn in trajectory.turns]


def sampled_tokens(trajectory: Trajectory) -> int:
    """How many tokens the policy sampled in a rollout."""
    return sum(tokens_by_turn(trajectory))


def _tabled(rollouts: Sequence[np.ndarray], ended: Outcomes) -> np.ndarray:
    """One array per valid rollout as `[P, G, T]`."""
    table = np.zeros((*ended.valid.shape, int(ended.tokens.max(initial=0))))
    for place, values in zip(np.argwhere(ended.valid), rollouts, strict=True):
        table[(*place, slice(0, len(values)))] = values
    return table
