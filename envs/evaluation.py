"""How good a model is at an environment: many rollouts at once, and what they add up to."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from envs.clients.base import Client
from envs.concurrency import together
from envs.environment import Environment
from envs.errors import ConfigError, unknown_name
from envs.price import Price
from envs.rollout import run_group, run_task
from envs.statistics import Interval, chance, difference, estimate, pass_all_k, pass_at_k
from envs.types import Sampling, Task, Trajectory
from envs.watchdog import Blocked, Watchdog

OnTrajectory = Callable[[Trajectory], Awaitable[None] | None]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The rollouts of an evaluation, in the order of tasks and samples, and what they add up to.

    Failed rollouts (server down, bug in a reward function) are counted and left out of every average. `blocked` names
    the environment's code that held up the event loop.
    """

    trajectories: Sequence[Trajectory]
    group_size: int = 1
    blocked: Sequence[Blocked] = ()

    def __repr__(self) -> str:
        # Short, because asyncio.run makes the repr of its result in passing: 0.08 ms per rollout when spelled out.
        scored = sum(1 for _ in self._scored())
        return f"Evaluation({len(self.trajectories)} rollouts, {scored} scored)"

    @property
    def names(self) -> tuple[str, ...]:
        """What there are values of: "reward", then each reward function, then each metric."""
        own = {name: None for t in self._scored() for values in (t.rewards, t.metrics) for name in values}
        return ("reward", *own)

    def values(self, name: str = "reward") -> dict[str, list[float]]:
        """For each task id the values of its rollouts, under one of `names`.

        Raises:
            ConfigError: for another name.
        """
        if name not in self.names:
            raise unknown_name("reward or metric", name, self.names)
        by_task: dict[str, list[float]] = {}
        for trajectory in self._scored():
            by_task.setdefault(trajectory.task.id, []).append(_value(trajectory, name))
        return by_task

    def interval(self, name: str = "reward") -> Interval:
        """The mean of one of `names` with its uncertainty (see `statistics.estimate`).

        Raises:
            ConfigError: for another name, or if no rollout was scored.
        """
        values = self.values(name)
        if not values:
            raise ConfigError(f"none of the {len(self.trajectories)} rollouts was scored; see their failures")
        return estimate(list(values.values()))

    def pass_at(self, success: str | None = None) -> dict[int, Interval]:
        """pass@k, the chance that one of k rollouts succeeds, for k = 1, 2, 4 … up to the group size, over the tasks
        with at least k scored rollouts.

        Args:
            success: the name of the reward or metric that is at least 1 for a success; by default the total reward.
        """
        return self._chances(pass_at_k, success)

    def pass_all(self, success: str | None = None) -> dict[int, Interval]:
        """pass^k, the chance that all of k rollouts succeed: what can be relied on. As `pass_at`."""
        return self._chances(pass_all_k, success)

    def _chances(self, estimator: Callable[[int, int, int], float], success: str | None) -> dict[int, Interval]:
        by_task = self.values(success or "reward").values()
        result = {}
        for k in (2**power for power in range(self.group_size.bit_length())):
            chances = [estimator(len(task), sum(v >= 1 for v in task), k) for task in by_task if len(task) >= k]
            if chances:
                result[k] = chance(chances)
        return result

    @property
    def usage(self) -> dict[str, int]:
        """The tokens that the server counted."""
        counted: Counter[str] = Counter()
        for trajectory in self.trajectories:
            for turn in trajectory.turns:
                counted.update(turn.completion.usage)
        return dict(counted)

    def tasks(self) -> list[dict[str, Any]]:
        """One record per task: its id, rollouts, failures, and the mean of each of `names`."""
        by_task: dict[str, list[Trajectory]] = {}
        for trajectory in self.trajectories:
            by_task.setdefault(trajectory.task.id, []).append(trajectory)
        records = []
        for task_id, rollouts in by_task.items():
            scored = [t for t in rollouts if t.reward is not None]
            means = {name: sum(_value(t, name) for t in scored) / len(scored) for name in self.names if scored}
            failures = sum(t.failure is not None for t in rollouts)
            records.append({"id": task_id, "rollouts": len(rollouts), "failures": failures, **means})
        return records

    def summary(self, success: str | None = None, price: Price | None = None) -> dict[str, Any]:
        """Everything in one JSON object.

        Keys: `tasks`, `rollouts`, `scored`; `failures` by kind and `stops` by stop condition; `reward`, and by name
        `rewards` and `metrics`, each with `mean`, `standard_error`, `ci95` and `tasks` (None if nothing was scored);
        `pass_at` and `pass_all` by k, likewise; `usage`, the tokens the server counted, and `cost`, what they cost in
        US dollars (None without a price); `seconds`, the mean time of a rollout.
        """
        scored = list(self._scored())
        rewards = dict.fromkeys(name for t in scored for name in t.rewards)
        metrics = dict.fromkeys(name for t in scored for name in t.metrics)
        usage = self.usage
        return {
            "tasks": len({t.task.id for t in self.trajectories}),
            "rollouts": len(self.trajectories),
            "scored": len(scored),
            "failures": dict(Counter(t.failure.kind for t in self.trajectories if t.failure is not None)),
            "stops": dict(Counter(t.stop for t in self.trajectories if t.failure is None)),
            "reward": self.interval().to_dict() if scored else None,
            "rewards": {name: self.interval(name).to_dict() for name in rewards},
            "metrics": {name: self.interval(name).to_dict() for name in metrics},
            "pass_at": {str(k): share.to_dict() for k, share in self.pass_at(success).items()},
            "pass_all": {str(k): share.to_dict() for k, share in self.pass_all(success).items()},
            "usage": usage,
            "cost": None if price is None else price.of(usage),
            "seconds": _mean([t.seconds for t in self.trajectories]) if self.trajectories else None,
        }

    def _scored(self) -> Iterator[Trajectory]:
        return (t for t in self.trajectories if t.reward is not None)


async def evaluate(
    environment: Environment,
    client: Client,
    *,
    split: str = "eval",
    tasks: Sequence[Task] | int | None = None,
    group_size: int = 1,
    sampling: Sampling = Sampling(),
    concurrency: int = 64,
    retries: int = 2,
    seed: int = 0,
    on_trajectory: OnTrajectory | None = None,
    done: Iterable[Trajectory] = (),
) -> Evaluation:
    """Runs every task `group_size` times.

    Args:
        environment: what to run.
        client: the model.
        split: which tasks.
        tasks: other tasks than that split's; or how many of its first ones.
        group_size: rollouts per task.
        sampling: how tokens are drawn.
        concurrency: the most rollouts at the same time (or one group, where functions judge groups).
        retries: how often an infrastructure failure is tried again.
        seed: what all randomness derives from, unless `sampling` has a seed of its own.
        on_trajectory: called with each new trajectory once it is scored, in the order they finish.
        done: trajectories of an earlier, interrupted run: not run again, and part of the result. Leave the failed
            ones out to have them run again. (Where functions judge groups, a group is done when all of it is.)

    Raises:
        ConfigError, ContextLengthError: see `run_task`.
    """
    if group_size < 1 or concurrency < 1:
        raise ConfigError(f"group_size={group_size}, concurrency={concurrency}; expected at least 1 of each")
    if tasks is None or isinstance(tasks, int):
        chosen = environment.tasks.split(split)
        tasks = chosen if tasks is None else chosen.head(tasks)
    if sampling.seed is None:
        sampling = replace(sampling, seed=seed)
    results = {(t.task.id, t.sample): t for t in done}
    whole_groups = environment.rubric.judges_groups

    def jobs() -> Iterator[tuple[Task, int]]:
        for task in tasks:
            missing = [sample for sample in range(group_size) if (task.id, sample) not in results]
            yield from ((task, sample) for sample in (missing[:1] if whole_groups else missing))

    async def finish(trajectory: Trajectory) -> None:
        results[trajectory.task.id, trajectory.sample] = trajectory
        if on_trajectory is not None:
            told = on_trajectory(trajectory)
            if inspect.isawaitable(told):
                await told

    queue = jobs()

    async def work() -> None:
        for task, sample in queue:  # shared: each worker takes the next job when it is free
            if whole_groups:
                group = await run_group(environment, task, client, size=group_size, sampling=sampling, retries=retries)
            else:
                alone = run_task(environment, task, client, sample=sample, sampling=sampling, retries=retries)
                group = [await alone]
            for trajectory in group:
                await finish(trajectory)

    workers = max(1, concurrency // group_size) if whole_groups else concurrency
    with Watchdog() as watchdog:
        await together(work() for _ in range(min(workers, len(tasks) * group_size)))
    ordered = [results[task.id, sample] for task in tasks for sample in range(group_size)]
    return Evaluation(ordered, group_size, watchdog.blocked)


def paired_gain(before: Evaluation, after: Evaluation, name: str = "reward") -> Interval:
    """How much better `after` is than `before`, task by task, over the tasks that both have scored.

    Pairing takes the difficulty of the tasks out of the uncertainty.

    Raises:
        ConfigError: if they share no scored task.
    """
    old, new = before.values(name), after.values(name)
    common = [task_id for task_id in old if task_id in new]
    if not common:
        raise ConfigError(f"the evaluations share no scored task ({len(old)} and {len(new)}); compare the same split")
    return difference([_mean(old[task_id]) for task_id in common], [_mean(new[task_id]) for task_id in common])


def _value(trajectory: Trajectory, name: str) -> float:
    if name == "reward":
        assert trajectory.reward is not None
        return trajectory.reward
    return trajectory.rewards[name] if name in trajectory.rewards else trajectory.metrics[name]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
