"""Evaluation that goes on where it stopped, and shows how far it is."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from envs.clients.base import Client
from envs.environment import Environment
from envs.evaluation import Evaluation, evaluate
from envs.record import Journal
from envs.types import Sampling, Task, Trajectory
from rl.rollout.collect import raise_bugs


async def held_out(
    environment: Environment,
    client: Client,
    tasks: Sequence[Task],
    *,
    samples: int,
    sampling: Sampling,
    journal: Path,
    on_progress: Callable[[int, Mapping[str, float]], None],
    concurrency: int = 512,
    retries: int = 2,
) -> Evaluation:
    """Runs each task `samples` times; rollouts that are in the journal already are not run again.

    Args:
        journal: file that each rollout is added to as it finishes; failed ones are left out, to be tried again.
        on_progress: told how many rollouts are done, and the mean reward and metrics so far.
        concurrency: the most rollouts at once.
        retries: how often a rollout is begun again after an infrastructure failure.

    Raises:
        EnvironmentBug: when a reward function or the harness raised.
    """
    with Journal(journal) as records:
        done = [trajectory for _, trajectory in records.read()]
        finished, sums = len(done), _sums(done)

        def on_trajectory(trajectory: Trajectory) -> None:
            nonlocal finished
            raise_bugs([trajectory])
            finished += 1
            if trajectory.failure is None:
                records.append(trajectory)
                for name, value in _values(trajectory).items():
                    sums.setdefault(name, []).append(value)
            on_progress(finished, {name: sum(values) / len(values) for name, values in sums.items()})

        result = await evaluate(
            environment,
            client,
            tasks=tasks,
            group_size=samples,
            sampling=sampling,
            concurrency=concurrency,
            retries=retries,
            on_trajectory=on_trajectory,
            done=done,
        )
        on_progress(len(result.trajectories), {name: sum(v) / len(v) for name, v in sums.items()})
    return result


def _values(trajectory: Trajectory) -> dict[str, float]:
    return {"reward": trajectory.reward or 0.0, **trajectory.rewards, **trajectory.metrics}


def _sums(trajectories: Sequence[Trajectory]) -> dict[str, list[float]]:
    sums: dict[str, list[float]] = {}
    for trajectory in trajectories:
        for name, value in _values(trajectory).items():
            sums.setdefault(name, []).append(value)
    return sums
