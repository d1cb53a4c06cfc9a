"""Saved trajectories under today's rubric: no model, no tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

from envs.clients.base import Client
from envs.concurrency import together
from envs.environment import Environment
from envs.errors import ConfigError
from envs.rollout import run_task
from envs.types import Completion, Message, Sampling, ToolSchema, Trajectory, Turn


async def rescore(
    environment: Environment, trajectories: Sequence[Trajectory], *, concurrency: int = 64, retries: int = 2
) -> list[Trajectory]:
    """The same trajectories with the rewards and metrics that the environment's rubric gives them now.

    Those that failed for other reasons than their scoring are as they were. Where functions judge groups, the
    rollouts of a task are one, as they are given here. Where functions ask for what the harness kept, which is not
    saved, the harness runs again and gets the recorded answers: it must come to the same questions.

    Args:
        environment: whose rubric scores.
        trajectories: at most one of each task and sample.
        concurrency: the most that are scored at once.
        retries: how often a judge that could not be reached is asked again.

    Raises:
        ConfigError: for a rubric that judges groups and asks for what the harness kept.
    """
    rubric = environment.rubric
    if rubric.needs_state and rubric.judges_groups:
        raise ConfigError(
            f"{', '.join(rubric.needs_state)} asked for what the harness keeps, which is not saved, and the rubric "
            "judges groups; let it read the trajectory's messages instead"
        )
    rescored: list[Trajectory] = [_unscored(trajectory) for trajectory in trajectories]
    queue: Iterator[int] = iter(range(len(rescored)))

    async def work() -> None:
        for i in queue:  # shared: each worker takes the next one
            if rescored[i].failure is not None:
                continue
            if rubric.needs_state:
                rescored[i] = await _driven(environment, rescored[i])
            else:
                await rubric.score(rescored[i], SimpleNamespace(), retries=retries)

    await together(work() for _ in range(min(concurrency, len(rescored))))
    if rubric.judges_groups:
        groups: dict[str, list[Trajectory]] = {}
        for trajectory in rescored:
            groups.setdefault(trajectory.task.id, []).append(trajectory)
        for group in groups.values():
            await rubric.score_group(group, [SimpleNamespace()] * len(group), retries=retries)
    return rescored


def _unscored(trajectory: Trajectory) -> Trajectory:
    failure = trajectory.failure
    scoring = failure is not None and (failure.kind == "reward" or failure.where not in ("", "harness"))
    return replace(
        trajectory, reward=None, rewards={}, metrics={}, turn_rewards=[], failure=None if scoring else failure
    )


async def _driven(environment: Environment, trajectory: Trajectory) -> Trajectory:
    client: Client = RecordedClient(trajectory.turns)
    again = await run_task(environment, trajectory.task, client, sample=trajectory.sample, retries=0)
    return replace(again, turns=trajectory.turns, seconds=trajectory.seconds, attempts=trajectory.attempts)


class RecordedClient:
    """Answers with a trajectory's own completions, as long as it is asked the same.

    Args:
        turns: of the trajectory.
    """

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = turns
        self._next = 0
        self._conversation: list[Message] = []

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
        sampling: Sampling = Sampling(),
        *,
        previous: Turn | None = None,
    ) -> Completion:
        """The recorded answer to `messages`.

        Raises:
            RuntimeError: when another question is asked than the recorded one, or one more.
        """
        if self._next == len(self._turns):
            raise RuntimeError(f"the harness asked for turn {self._next + 1}; {len(self._turns)} were recorded")
        turn = self._turns[self._next]
        asked = list(turn.messages) if turn.fresh else [*self._conversation, *turn.messages]
        if json.dumps(asked, sort_keys=True) != json.dumps(list(messages), sort_keys=True):
            raise RuntimeError(
                f"turn {self._next + 1} asks something else than was recorded: the harness has changed, or depends on "
                f"more than what the model said. Now: {messages[-1]!r}, recorded: {asked[-1]!r}"
            )
        self._next += 1
        self._conversation = [*asked, turn.completion.message]
        return turn.completion

    async def close(self) -> None:
        """Nothing to let go of."""
