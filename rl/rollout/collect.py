"""Drives an environment to get the groups of one training step."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from envs.clients.base import Client
from envs.concurrency import together
from envs.environment import Environment
from envs.errors import InfrastructureError, UpswingError, first_few
from envs.evaluation import evaluate
from envs.rollout import run_task
from envs.types import GREEDY, Failure, Sampling, Task, Trajectory

Groups = list[list[Trajectory]]


class EnvironmentBug(UpswingError):
    """A harness or a reward function raised: an error to show, never a reward."""


@dataclass(frozen=True)
class Collector:
    """Rolls out groups.

    Attributes:
        environment: what to run.
        client: the policy.
        group_size: rollouts per task.
        sampling: how tokens are drawn; its seed is replaced per step.
        retries: how often an infrastructure failure is tried again.
        deadline: seconds that the rollouts of a step may take together; None: for ever.
        greedy: roll out each task once more without chance, as the last of its group; its `sample` is -1.
    """

    environment: Environment
    client: Client
    group_size: int
    sampling: Sampling
    retries: int = 2
    deadline: float | None = None
    greedy: bool = False

    async def collect(
        self,
        tasks: Sequence[Task],
        seed: int,
        done: Iterable[Trajectory] = (),
        on_trajectory: Callable[[Trajectory], None] | None = None,
    ) -> Groups:
        """All rollouts of these tasks, a list per task.

        Args:
            tasks: different tasks.
            seed: what the rollouts' randomness derives from.
            done: rollouts that were journaled before; they are not run again.
            on_trajectory: called with each new rollout as it finishes.

        Raises:
            EnvironmentBug: when a reward function or the harness raised.
            InfrastructureError: when every single rollout failed for reasons around the model.
            DeadlineError: when they were not done in time.
        """
        done = list(done)
        samples = [*range(self.group_size), *([GREEDY] if self.greedy else [])]
        running = {(task.id, sample) for task in tasks for sample in samples}
        running -= {(t.task.id, t.sample) for t in done}

        def finished(trajectory: Trajectory) -> None:
            running.discard((trajectory.task.id, trajectory.sample))
            if on_trajectory is not None:
                on_trajectory(trajectory)

        try:
            async with asyncio.timeout(self.deadline) as clock:
                rolling = [self._sampled(tasks, seed, done, finished)]
                rolling += [self._greedily(tasks, seed, done, finished)] if self.greedy else []
                rollouts, *extra = await together(rolling)
        except TimeoutError:
            if not clock.expired():
                raise
            raise DeadlineError(self._overdue(running, len(tasks) * len(samples))) from None
        raise_bugs(chain(rollouts, *extra))
        if all(t.failure is not None for t in rollouts):
            raise InfrastructureError(
                f"all {len(rollouts)} rollouts of the step failed; the first: {_text(rollouts[0].failure)}"
            )
        groups = [rollouts[i : i + self.group_size] for i in range(0, len(rollouts), self.group_size)]
        return [[*group, *beside] for group, *beside in zip(groups, *extra, strict=True)]

    async def _sampled(
        self, tasks: Sequence[Task], seed: int, done: list[Trajectory], finished: Callable[[Trajectory], None]
    ) -> list[Trajectory]:
        evaluation = await evaluate(
            self.environment,
            self.client,
            tasks=tasks,
            group_size=self.group_size,
            sampling=replace(self.sampling, seed=seed),
            concurrency=len(tasks) * self.group_size,
            retries=self.retries,
            on_trajectory=finished,
            done=done,
        )
        return list(evaluation.trajectories)

    async def _greedily(
        self, tasks: Sequence[Task], seed: int, done: list[Trajectory], finished: Callable[[Trajectory], None]
    ) -> list[Trajectory]:
        sampling = replace(self.sampling, temperature=0.0, seed=seed)
        known = {t.task.id: t for t in done if t.sample == GREEDY}

        async def one(task: Task) -> Trajectory:
            if task.id in known:
                return known[task.id]
            found = await run_task(
                self.environment, task, self.client, sample=GREEDY, sampling=sampling, retries=self.retries
            )
            finished(found)
            return found

        return await together(one(task) for task in tasks)

    def _overdue(self, running: set[tuple[str, int]], rollouts: int) -> str:
        waiting = first_few(sorted(task_id for task_id, _ in running))
        return (
            f"{len(running)} of the step's {rollouts} rollouts in {self.environment.name} were not done after "
            f"{self.deadline:g} s, of the tasks {waiting}; the others are journaled. Look at what these wait for, "
            "limit a rollout (Environment(timeout=…)), or raise step_timeout, and go on with resume=true"
        )


class DeadlineError(UpswingError):
    """The rollouts of a step take longer than they may."""


def raise_bugs(trajectories: Iterable[Trajectory]) -> None:
    """Raises `EnvironmentBug` for the first rollout that ended in a bug of the environment."""
    for trajectory in trajectories:
        failure = trajectory.failure
        if failure is not None and failure.kind != "infrastructure":
            raise EnvironmentBug(
                f"{failure.where or failure.kind} raised {failure.error} on task '{trajectory.task.id}': "
                f"{failure.message}\n{failure.traceback}"
            )


def _text(failure: Failure | None) -> str:
    return "" if failure is None else f"{failure.error}: {failure.message}"
