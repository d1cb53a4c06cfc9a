"""Rewards out of comparisons: the rollouts of a group against each other."""

from collections.abc import Awaitable, Callable, Sequence
from itertools import combinations

from envs.concurrency import together
from envs.types import Task, Trajectory

Compare = Callable[[Task, Trajectory, Trajectory], Awaitable[float]]


def tournament(compare: Compare, *, both_ways: bool = True) -> Callable[..., Awaitable[list[float]]]:
    """A reward function for groups: everyone against everyone, and the share of the points each has won.

        Rubric({tournament(better): 1.0})

    Args:
        compare: of two rollouts of a task, what the first one wins, from 0 to 1 (0.5: a draw); the second wins the
            rest. What it raises is handled as for any reward function.
        both_ways: compare each pair in both orders and take the mean; judges favour places.

    Returns:
        `win_rate(task, trajectories)`, from 0 to 1; 0.5 for a rollout without a rival.
    """

    async def win_rate(task: Task, trajectories: Sequence[Trajectory]) -> list[float]:
        pairs = list(combinations(range(len(trajectories)), 2))
        matches = [*pairs, *((j, i) for i, j in pairs)] if both_ways else pairs
        shares = await together(compare(task, trajectories[i], trajectories[j]) for i, j in matches)
        points = [0.0] * len(trajectories)
        for (i, j), share in zip(matches, shares, strict=True):
            points[i] += share
            points[j] += 1.0 - share
        played = (len(trajectories) - 1) * (2 if both_ways else 1)
        return [point / played if played else 0.5 for point in points]

    return win_rate
