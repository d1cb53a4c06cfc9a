"""Which groups an update trains on, and which tasks are worth asking: parts that configs name.

A gate is told the rewards of a group and says whether it is trained on; groups that are not are replaced, up to so many
rounds. A pool is told the mean reward of a task when it was last sampled, None if it never was, and says whether to ask
it again. Both are functions of what the journals hold, so a resumed run makes the same choices.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.errors import UpswingError
from envs.types import Task, Trajectory
from rl.data.pack import Segment

Groups = Sequence[Sequence[Trajectory]]
Gate = Callable[[Sequence[float]], bool]
Pool = Callable[[float | None], bool]


class NothingToLearn(UpswingError):
    """None of the groups that were sampled for an update passed the gate."""


def every(rewards: Sequence[float] | float | None) -> bool:
    """All of them."""
    return True


def differ(rewards: Sequence[float]) -> bool:
    """Groups whose rewards are not all equal: of the others, a baseline of the group leaves nothing (the dynamic
    sampling of DAPO, arXiv:2503.14476)."""
    return len(rewards) > 1 and max(rewards) - min(rewards) > 1e-6


def mean_between(rewards: Sequence[float], *, low: float, high: float) -> bool:
    """Groups with a mean reward of `low` to `high`."""
    return len(rewards) > 0 and low <= float(np.mean(rewards)) <= high


def last_between(last: float | None, *, low: float, high: float) -> bool:
    """Tasks whose mean reward was `low` to `high` when they were last sampled, and those that never were."""
    return last is None or low <= last <= high


GATES: Mapping[str, Callable[..., bool]] = {"every": every, "differ": differ, "between": mean_between}
POOLS: Mapping[str, Callable[..., bool]] = {"every": every, "between": last_between}


class Selection(NamedTuple):
    """What is chosen by.

    Attributes:
        gate: which groups are trained on.
        rounds: of sampling for one update, the first included.
        pool: which tasks are asked; None: all, once per epoch.
        advantage_low: rollouts whose advantage is nearer to 0 take no part,
        advantage_high: and those whose advantage is farther from it.
    """

    gate: Gate = every
    rounds: int = 1
    pool: Pool | None = None
    advantage_low: float = 0.0
    advantage_high: float = float("inf")


def selection(
    *,
    gate: str | Gate = "every",
    gate_low: float = 0.0,
    gate_high: float = 1.0,
    rounds: int = 1,
    pool: str | Pool = "every",
    pool_low: float = 0.0,
    pool_high: float = 1.0,
    advantage_low: float = 0.0,
    advantage_high: float | None = None,
) -> Selection:
    """Gate and pool by name, or as functions.

    Args:
        gate: every, differ (rewards of a group that are not all equal) or between.
        gate_low: of "between": least mean reward of a group.
        gate_high: and the most.
        rounds: of sampling per update; those after the first replace groups that did not pass.
        pool: every, or between; tasks that were never sampled are always asked.
        pool_low: of "between": least mean reward of a task when it was last sampled.
        pool_high: and the most.
        advantage_low: rollouts with a smaller absolute advantage take no part.
        advantage_high: nor those with a larger one; null: any.

    Raises:
        ValueError: for unknown names, or bounds between which nothing lies.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; expected at least 1")
    highest = float("inf") if advantage_high is None else advantage_high
    bounds = {"gate": (gate_low, gate_high), "pool": (pool_low, pool_high), "advantage": (advantage_low, highest)}
    for name, (low, high) in bounds.items():
        if not low <= high:
            raise ValueError(f"{name}_low={low:g} is above {name}_high={high:g}: nothing lies between")
    chosen = _part("gate", gate, GATES, gate_low, gate_high), _part("pool", pool, POOLS, pool_low, pool_high)
    return Selection(chosen[0], rounds, None if pool == "every" else chosen[1], advantage_low, highest)


def _part(kind: str, part: Any, table: Mapping[str, Callable[..., bool]], low: float, high: float) -> Any:
    if callable(part):
        return part
    if part not in table:
        raise ValueError(f"{kind} is {part!r}; expected one of {', '.join(table)}, or MODULE:FUNCTION")
    return partial(table[part], low=low, high=high) if part == "between" else table[part]


class Selected(NamedTuple):
    """What came of sampling for one update: groups to train on, those that were left out, how often was sampled."""

    kept: list[Sequence[Trajectory]]
    left: list[Sequence[Trajectory]]
    rounds: int
    short: int

    @property
    def sampled(self) -> list[Sequence[Trajectory]]:
        """All groups: what the policy did. Those that are kept are chosen by their rewards, and say less about it."""
        return [*self.kept, *self.left]

    def metrics(self) -> dict[str, float]:
        """`selection/kept` (share of the groups sampled), `selection/rounds`, `selection/short` (groups that the update
        has too few)."""
        return {
            "selection/kept": len(self.kept) / len(self.sampled),
            "selection/rounds": float(self.rounds),
            "selection/short": float(self.short),
        }


def rewards_of(group: Sequence[Trajectory]) -> list[float]:
    """Of the rollouts that have one and were drawn by chance."""
    return [t.reward for t in group if t.reward is not None and t.sample >= 0]


async def select(
    selection: Selection,
    prompts: int,
    draw: Callable[[int, int, set[str]], Sequence[Task]],
    roll: Callable[[Sequence[Task]], Awaitable[Groups]],
) -> Selected:
    """Samples until `prompts` groups pass the gate, or the rounds are over.

    Args:
        selection: the gate and the number of rounds.
        prompts: groups that an update wants.
        draw: `draw(round, count, had)`: so many tasks, or all there are, without those whose ids were had.
        roll: the groups of tasks.

    Raises:
        NothingToLearn: when not one group passed.
    """
    kept: list[Sequence[Trajectory]] = []
    left: list[Sequence[Trajectory]] = []
    had: set[str] = set()
    rounds = 0
    while rounds < selection.rounds and len(kept) < prompts:
        tasks = draw(rounds, prompts - len(kept), had)
        if not tasks:
            break
        rounds += 1
        had |= {task.id for task in tasks}
        for group in await roll(tasks):
            (kept if selection.gate(rewards_of(group)) else left).append(group)
    if not kept:
        means = [float(np.mean(rewards)) for group in left if (rewards := rewards_of(group))]
        found = f"of mean reward {min(means):.3g} to {max(means):.3g}" if means else "none of them with a reward"
        raise NothingToLearn(
            f"none of {len(left)} groups, sampled in {rounds} rounds, passed selection.gate; {found}. Take easier "
            "or harder tasks (env.…, selection.pool), more rollouts of each (group_size), more selection.rounds, or "
            "another gate"
        )
    return Selected(kept, left, rounds, prompts - len(kept))


def within(parts: Iterable[Segment], selection: Selection) -> list[Segment]:
    """The segments of rollouts whose absolute advantage is in the range; of several advantages, the largest counts."""
    result: list[Segment] = []
    rollout: list[Segment] = []
    for part in [*parts, None]:
        if rollout and (part is None or part.starts_rollout):
            largest = max(float(np.max(np.abs(each.advantage))) for each in rollout)
            if selection.advantage_low <= largest <= selection.advantage_high:
                result += rollout
            rollout = []
        if part is not None:
            rollout.append(part)
    return result


class LastRewards:
    """The mean reward of every task when it was last sampled: a file with a line of JSON per update.

    Args:
        path: the file.
        updates: how many updates were made; what is on file about later ones is dropped, they are made again.
    """

    def __init__(self, path: Path, updates: int) -> None:
        self._path = path
        whole = [line for line in _lines(path) if line.endswith("\n") and json.loads(line)["update"] <= updates]
        path.write_text("".join(whole), "utf-8")
        self._rows = [json.loads(line) for line in whole]
        self._known: dict[str, float] = {}
        self._merged = 0

    def add(self, update: int, groups: Groups) -> None:
        """What was sampled for an update (from 1)."""
        means = {group[0].task.id: float(np.mean(rewards)) for group in groups if (rewards := rewards_of(group))}
        row = {"update": update, "rewards": means}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._rows.append(row)

    def after(self, updates: int) -> Mapping[str, float]:
        """What was known after so many updates; these may only grow from call to call."""
        while self._merged < len(self._rows) and self._rows[self._merged]["update"] <= updates:
            self._known |= self._rows[self._merged]["rewards"]
            self._merged += 1
        return self._known


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []
