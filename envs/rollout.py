"""Running one task once, and one task several times: harness, record, retries, score."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Sequence
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

from envs.clients.base import Client
from envs.concurrency import together
from envs.environment import Environment
from envs.errors import INFRASTRUCTURE, ConfigError, ContextLengthError, InfrastructureError, unknown_name
from envs.seeds import derive_seed
from envs.types import Completion, Failure, Message, Sampling, Task, ToolSchema, Trajectory, Turn

_SAMPLING_FIELDS = frozenset(field.name for field in fields(Sampling))


class Rollout:
    """What a harness holds: one run of one task.

    Attributes:
        task: the problem.
        trajectory: the record, which `complete` adds to.
        state: what the harness wants to keep; reward functions and tools can ask for it. A namespace, until a
            harness puts a value of its own type in its place.
        messages: the conversation. It starts as the task's prompt; a harness appends to it or rewrites it.
        sampling: how tokens are drawn; `sampling.seed` is this rollout's own.
    """

    __slots__ = ("_client", "_others", "_recorded", "messages", "sampling", "state", "task", "trajectory")

    def __init__(self, task: Task, client: Client, *, sample: int = 0, sampling: Sampling = Sampling()) -> None:
        self.task = task
        self.trajectory = Trajectory(task, sample)
        self.state: Any = SimpleNamespace()
        self.messages: list[Message] = [_copy(message) for message in task.prompt]
        self.sampling = sampling
        self._client = client
        self._others: list[Rollout] = []
        self._recorded: list[Message] = []  # the conversation as of the last completion

    @property
    def last(self) -> Completion:
        """The latest completion.

        Raises:
            IndexError: before the first one.
        """
        return self.trajectory.turns[-1].completion

    async def complete(self, tools: Sequence[ToolSchema] = (), **overrides: Any) -> Message:
        """Asks the model to continue `messages`, records the turn, appends the answer and returns it.

        Args:
            tools: what the model may call.
            overrides: fields of `Sampling` for this turn alone, for example `max_tokens=16`.

        Raises:
            ConfigError: for an override that `Sampling` does not have.
            InfrastructureError, ContextLengthError: see `Client.complete`. A harness lets them pass.
        """
        turns = self.trajectory.turns
        extends = bool(turns) and self._extends()
        messages = [_copy(message) for message in self.messages]
        sampling = _turn_sampling(self.sampling, len(turns), overrides)
        started = time.perf_counter()
        completion = await self._client.complete(messages, tools, sampling, previous=turns[-1] if extends else None)
        seconds = time.perf_counter() - started
        added = messages[len(self._recorded) :] if extends else messages
        turns.append(Turn(tuple(added), completion, not extends, seconds))
        self._recorded = [*messages, completion.message]
        answer = _copy(completion.message)
        self.messages.append(answer)
        return answer

    def role(self, name: str, prompt: Sequence[Message] | None = None, *, client: Client | None = None) -> Rollout:
        """Somebody else who takes part, with a conversation and a record of their own, `trajectory.roles[name]`.

        Args:
            name: who it is; new in this rollout.
            prompt: what their conversation starts from; by default the task's prompt.
            client: the model that speaks for them; by default the one of this rollout.

        Raises:
            ConfigError: for a name that is taken.
        """
        if name in self.trajectory.roles:
            raise ConfigError(f"two roles of one rollout are called '{name}'; rename one")
        seed = None if self.sampling.seed is None else derive_seed(self.sampling.seed, "role", name)
        task = self.task if prompt is None else replace(self.task, prompt=tuple(prompt))
        other = Rollout(
            task, client or self._client, sample=self.trajectory.sample, sampling=replace(self.sampling, seed=seed)
        )
        self.trajectory.roles[name] = other.trajectory
        self._others.append(other)
        return other

    def adopt(self, other: Rollout) -> None:
        """Makes what happened in another rollout of this task, one of its roles for example, its own."""
        self.trajectory.turns = list(other.trajectory.turns)
        self.messages, self.state = [_copy(message) for message in other.messages], other.state
        self._recorded = list(other._recorded)

    def finish(self, stop: str, seconds: float) -> None:
        """Closes the record, and those of the roles that are still open."""
        for other in self._others:
            if not other.trajectory.stop:
                other.finish(stop, seconds)
        trajectory = self.trajectory
        if trajectory.turns and self._extends():
            trajectory.tail = tuple(_copy(message) for message in self.messages[len(self._recorded) :])
        trajectory.stop, trajectory.seconds = stop, seconds

    def _extends(self) -> bool:
        recorded = self._recorded
        return self.messages[: len(recorded)] == recorded


async def run_task(
    environment: Environment,
    task: Task,
    client: Client,
    *,
    sample: int = 0,
    sampling: Sampling = Sampling(),
    retries: int = 2,
    score: bool = True,
) -> Trajectory:
    """Runs one task once.

    What goes wrong around the model never becomes a reward: infrastructure failures are tried again from a fresh start
    and then recorded as `Failure("infrastructure")`, a bug in the harness as `Failure("harness")`, one in a reward
    function as `Failure("reward")`; `reward` stays None. Running out of context after the first turn, or out of the
    environment's time, ends the rollout with "context_length" or "timeout", and what was achieved is scored. Time that
    runs out before the model has answered once is the infrastructure's.

    Args:
        environment: what to run.
        task: one of its tasks, or another of the same kind.
        client: the model.
        sample: which of the task's rollouts this is.
        sampling: how tokens are drawn. The rollout's seed derives from `(sampling.seed, task.id, sample)`; without a
            seed, rollouts differ from run to run.
        retries: how often an infrastructure failure is tried again.
        score: whether to score the rollout (as a group of one, where functions judge groups).

    Raises:
        ConfigError: before the first answer, for what the user has to solve: a wrong key, model name or argument.
        ContextLengthError: if not even the first prompt fits.
    """
    rollout = await _run(environment, task, client, sample, sampling, retries, score)
    if score:
        await environment.rubric.score_group([rollout.trajectory], [rollout.state], retries=retries)
    return rollout.trajectory


async def run_group(
    environment: Environment,
    task: Task,
    client: Client,
    *,
    size: int,
    sampling: Sampling = Sampling(),
    retries: int = 2,
    score: bool = True,
) -> list[Trajectory]:
    """Runs one task `size` times at once, each with its own seed, and scores the rollouts as a group.

    Functions that judge groups see the rollouts that did not fail. Arguments and errors as for `run_task`.
    """
    if size < 1:
        raise ConfigError(f"group size {size}; expected at least 1")
    runs = (_run(environment, task, client, sample, sampling, retries, score) for sample in range(size))
    rollouts = await together(runs)
    trajectories = [rollout.trajectory for rollout in rollouts]
    if score:
        await environment.rubric.score_group(trajectories, [rollout.state for rollout in rollouts], retries=retries)
    return trajectories


async def _run(
    environment: Environment, task: Task, client: Client, sample: int, sampling: Sampling, retries: int, score: bool
) -> Rollout:
    if sampling.seed is not None:
        sampling = replace(sampling, seed=derive_seed(sampling.seed, task.id, sample))
    for attempt in range(1, retries + 2):
        rollout = Rollout(task, client, sample=sample, sampling=sampling)
        await _attempt(environment, rollout)
        rollout.trajectory.attempts = attempt
        failure = rollout.trajectory.failure
        if failure is None or failure.kind != "infrastructure":
            break
    if score:
        await environment.rubric.score(rollout.trajectory, rollout.state, retries=retries)
    return rollout


async def _attempt(environment: Environment, rollout: Rollout) -> None:
    """Drives the harness to an end of any kind and closes the record."""
    started = time.perf_counter()
    stop = ""
    try:
        stop = await drive(environment, rollout)
    except Exception as error:
        # Before the first answer these are the user's to solve, and every other rollout would end in the same way.
        if isinstance(error, ConfigError | ContextLengthError) and not rollout.trajectory.turns:
            raise
        if isinstance(error, ContextLengthError):
            stop = "context_length"
        else:
            rollout.trajectory.failure = _failure(error)
    rollout.finish(stop, time.perf_counter() - started)


async def drive(environment: Environment, rollout: Rollout) -> str:
    try:
        async with asyncio.timeout(environment.timeout) as limit:
            stop = await environment.harness(rollout)
    except TimeoutError:
        if not limit.expired():
            raise
        if not rollout.trajectory.turns:
            raise InfrastructureError(
                f"the model had not answered once when the environment's {environment.timeout:g} s were over; "
                "is the server overloaded, or Environment(timeout=…) too short?"
            ) from None
        return "timeout"
    if not isinstance(stop, str) or not stop:
        raise TypeError(f"the harness returned {stop!r}; expected the word for why it stopped, such as 'completed'")
    return stop


def _failure(error: Exception) -> Failure:
    if isinstance(error, ExceptionGroup):  # from a task group inside the harness
        infrastructure = error.subgroup(INFRASTRUCTURE) is not None
    else:
        infrastructure = isinstance(error, INFRASTRUCTURE)
    name, text = type(error).__name__, str(error)
    trace = "".join(traceback.format_exception(error))
    return Failure("infrastructure" if infrastructure else "harness", name, text, "harness", trace)


def _turn_sampling(sampling: Sampling, turn: int, overrides: dict[str, Any]) -> Sampling:
    for name in overrides:
        if name not in _SAMPLING_FIELDS:
            raise unknown_name("sampling field", name, _SAMPLING_FIELDS)
    if sampling.seed is None:
        return replace(sampling, **overrides) if overrides else sampling
    return replace(sampling, **{"seed": derive_seed(sampling.seed, turn), **overrides})


def _copy(message: Message) -> Message:
    """A copy that later changes by the harness do not reach."""
    copied = message.copy()
    if "tool_calls" in message:  # `deepcopy` would take as long as all the rest of a turn
        calls = message["tool_calls"]
        copied["tool_calls"] = [{**call, "function": call["function"].copy()} for call in calls]
    return copied
