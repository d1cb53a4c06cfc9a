"""Is an environment fit for use? Questions that need no model: are its tasks sound, is its rubric right about what is
known to be right, empty and wrong, and does it do the same thing twice?
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from envs.clients.scripted import ScriptedClient
from envs.concurrency import together
from envs.environment import Environment
from envs.errors import UpswingError
from envs.resolve import load_environment
from envs.rollout import run_task
from envs.types import Message, Sampling, Task, Trajectory

_AT_ONCE = 8  # rollouts


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question.

    Attributes:
        name: what was asked.
        passed: None if it could not be asked.
        detail: what was found.
    """

    name: str
    passed: bool | None
    detail: str


class UnfitError(Exception):
    """A check that does not pass; the text says why."""


class NotAskedError(Exception):
    """A check that makes no sense here; the text says why."""


def validate(
    name: str | Path,
    arguments: Mapping[str, Any] | None = None,
    *,
    tasks: int = 16,
    samples: int = 8,
    high: float = 0.9,
    low: float = 0.5,
) -> list[Check]:
    """Every check of an environment.

    The gold answer is what `demonstrate` shows, or `task.answer` where there is no demonstrator.

    Args:
        name: as for `load_environment`.
        arguments: of its `load_environment`.
        tasks: how many of each split are rolled out.
        samples: demonstrators per task, the best of whom counts: not every one has to be right.
        high: the mean reward that gold answers must reach.
        low: the mean reward that empty answers and those to other tasks may reach.

    Raises:
        ConfigError: if there is no such environment, or it takes other arguments.
    """
    environment = load_environment(name, **(arguments or {}))
    subject = _Subject(environment, lambda: load_environment(name, **(arguments or {})), tasks, samples)
    checks: Sequence[tuple[str, Callable[[], Awaitable[str]]]] = (
        ("ids are unique, no split is empty", subject.tasks_are_sound),
        ("splits share no problem", subject.splits_are_disjoint),
        ("tasks survive JSON", subject.tasks_survive_json),
        ("tasks are the same every time", subject.tasks_are_deterministic),
        ("gold answers score high", lambda: subject.gold_scores_high(high)),
        ("empty answers score low", lambda: subject.empty_scores_low(low)),
        ("wrong answers score low", lambda: subject.wrong_scores_low(low)),
        ("rollouts survive JSON", subject.rollouts_survive_json),
        ("rollouts are the same under a seed", subject.rollouts_are_deterministic),
    )
    return asyncio.run(_all(checks))


async def _all(checks: Sequence[tuple[str, Callable[[], Awaitable[str]]]]) -> list[Check]:
    found = []
    for name, ask in checks:
        try:
            found.append(Check(name, True, await ask()))
        except NotAskedError as reason:
            found.append(Check(name, None, str(reason)))
        except (UnfitError, UpswingError) as reason:
            found.append(Check(name, False, str(reason)))
    return found


class _Subject:
    """An environment under examination."""

    def __init__(self, environment: Environment, again: Callable[[], Environment], tasks: int, samples: int) -> None:
        self.environment, self._again, self._most, self._samples = environment, again, tasks, samples
        self._gold: dict[str, tuple[list[Message], Trajectory]] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)

    def few(self) -> list[Task]:
        """The first tasks of each split."""
        return [task for name in self.environment.tasks.splits for task in islice(self._split(name), self._most)]

    async def tasks_are_sound(self) -> str:
        sizes = [f"{name}: {len(self._split(name)):,}" for name in self.environment.tasks.splits]
        return ", ".join(sizes)  # building a split checks it

    async def splits_are_disjoint(self) -> str:
        homes: dict[str, str] = {}
        for name in self.environment.tasks.splits:
            for task in self._split(name):
                key = json.dumps([task.prompt, task.answer], sort_keys=True, default=repr)
                if homes.setdefault(key, name) != name:
                    raise UnfitError(
                        f"task '{task.id}' of split '{name}' has the prompt and answer of one in '{homes[key]}'"
                    )
        return f"{len(homes):,} different problems"

    async def tasks_survive_json(self) -> str:
        count = 0
        for task in self.environment.tasks:
            count += 1
            try:
                same = Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
            except (TypeError, ValueError) as error:
                raise UnfitError(f"task '{task.id}' is no JSON: {error}") from None
            if not same:
                raise UnfitError(f"task '{task.id}' changes on the way through JSON (tuples in answer or info?)")
        return f"{count:,} tasks"

    async def tasks_are_deterministic(self) -> str:
        before, after = self.environment.tasks, self._again().tasks
        if before.splits != after.splits:
            raise UnfitError(f"the splits were {before.splits}, and are {after.splits} when loaded again")
        for i, (one, other) in enumerate(zip(before, after, strict=False)):
            if one != other:
                raise UnfitError(f"task {i} was '{one.id}', and is '{other.id}' or different when loaded again")
        if len(before) != len(after):
            raise UnfitError(f"there were {len(before)} tasks, and are {len(after)} when loaded again")
        return "loaded twice"

    async def gold_scores_high(self, high: float) -> str:
        tasks = self.few()
        self._gold = {t.id: best for t, best in zip(tasks, await together(map(self._best, tasks)), strict=True)}
        mean = _mean(_reward(trajectory) for _, trajectory in self._gold.values())
        if mean < high:
            worst = min(self._gold.values(), key=lambda b: _reward(b[1]))[1]
            raise UnfitError(f"mean {mean:.3f}, expected at least {high:g}; {_described(worst)}")
        return f"mean {mean:.3f} over {len(self._gold)} tasks"

    async def empty_scores_low(self, low: float) -> str:
        silent: Message = {"role": "assistant", "content": ""}
        return await self._low([(task, [silent]) for task in self.few()], low)

    async def wrong_scores_low(self, low: float) -> str:
        tasks = self.few()
        if len(self._gold) < len(tasks):
            raise NotAskedError("needs the gold answers")
        pairs = [(task, self._gold[other.id][0]) for task, other in zip(tasks, [*tasks[1:], tasks[0]], strict=True)]
        pairs = [(task, answer) for task, answer in pairs if answer != self._gold[task.id][0]]
        if not pairs:
            raise NotAskedError("all gold answers are the same")
        return await self._low(pairs, low)

    async def rollouts_survive_json(self) -> str:
        for _, trajectory in self._golden():
            line = trajectory.to_json()
            if Trajectory.from_json(line).to_json() != line:
                raise UnfitError(f"the rollout of task '{trajectory.task.id}' changes on the way through JSON")
        return f"{len(self._golden())} rollouts"

    async def rollouts_are_deterministic(self) -> str:
        golden = self._golden()
        again = await together(self._said(first.task, messages) for messages, first in golden)
        for (_, first), second in zip(golden, again, strict=True):
            if _timeless(first) != _timeless(second):
                raise UnfitError(
                    f"task '{first.task.id}' went another way the second time: {_difference(first, second)}"
                )
        return f"{len(golden)} rollouts twice"

    def _golden(self) -> list[tuple[list[Message], Trajectory]]:
        if not self._gold:
            raise NotAskedError("needs the gold answers")
        return list(self._gold.values())

    def _split(self, name: str) -> Sequence[Task]:
        return self.environment.tasks.split(name)

    def _demonstrators(self) -> int:
        return 1 if self.environment.demonstrate is None else self._samples

    async def _best(self, task: Task) -> tuple[list[Message], Trajectory]:
        """What the best demonstrator says, and its rollout. Demonstrators who say the same are played once."""
        played: list[tuple[list[Message], Trajectory]] = []
        for sample in range(self._demonstrators()):
            messages = self._shown(task, sample)
            if all(messages != said for said, _ in played):
                played.append((messages, await self._said(task, messages)))
        return max(played, key=lambda shown: _reward(shown[1]))

    def _shown(self, task: Task, sample: int) -> list[Message]:
        if self.environment.demonstrate is not None:
            return [m for m in self.environment.demonstration(task, sample) if m["role"] == "assistant"]
        if task.answer is None:
            raise NotAskedError("no gold answers: give the tasks an answer, or Environment(demonstrate=…)")
        text = task.answer if isinstance(task.answer, str) else json.dumps(task.answer)
        return [{"role": "assistant", "content": text}]

    async def _said(self, task: Task, messages: Sequence[Message]) -> Trajectory:
        """A rollout in which the model says one thing after the other, the last one again and again."""
        rest = iter(messages)
        client = ScriptedClient(lambda _: next(rest, messages[-1]))
        async with self._room:
            trajectory = await run_task(self.environment, task, client, sampling=Sampling(seed=0), retries=0)
        if trajectory.failure is not None:
            failure = trajectory.failure
            raise UnfitError(
                f"task '{task.id}': {failure.where} raised {failure.error}: {failure.message}\n{failure.traceback}"
            )
        return trajectory

    async def _low(self, pairs: Iterable[tuple[Task, Sequence[Message]]], low: float) -> str:
        said = await together(self._said(task, messages) for task, messages in pairs)
        mean = _mean(map(_reward, said))
        if mean > low:
            raise UnfitError(f"mean {mean:.3f}, expected at most {low:g}; {_described(max(said, key=_reward))}")
        return f"mean {mean:.3f} over {len(said)} tasks"


def _reward(trajectory: Trajectory) -> float:
    assert trajectory.reward is not None  # `_said` lets no failure through
    return trajectory.reward


def _described(trajectory: Trajectory) -> str:
    scores = ", ".join(f"{name} {value:g}" for name, value in trajectory.rewards.items())
    return f"for example task '{trajectory.task.id}', answer {trajectory.completion[:200]!r}: {scores}"


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _timeless(trajectory: Trajectory) -> dict[str, Any]:
    data = trajectory.to_dict()
    data["roles"] = {name: _timeless(role) for name, role in trajectory.roles.items()}
    del data["seconds"]
    for turn in data["turns"]:
        del turn["seconds"]
    return data


def _difference(first: Trajectory, second: Trajectory) -> str:
    one, other = _timeless(first), _timeless(second)
    name = next(name for name in one if one[name] != other[name])
    return f"{name} was {str(one[name])[:200]}, then {str(other[name])[:200]}"
