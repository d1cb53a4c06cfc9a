"""What counts as good: named, weighted reward functions, and metrics that are only watched."""

from __future__ import annotations

import asyncio
import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any, TypeVar

from envs.errors import INFRASTRUCTURE, ConfigError, unknown_name
from envs.types import Failure, Trajectory

RewardFunction = Callable[..., Any]

_ROLLOUT: Mapping[str, Callable[[Trajectory, SimpleNamespace], Any]] = {
    "task": lambda trajectory, state: trajectory.task,
    "prompt": lambda trajectory, state: trajectory.task.prompt,
    "answer": lambda trajectory, state: trajectory.task.answer,
    "info": lambda trajectory, state: trajectory.task.info,
    "completion": lambda trajectory, state: trajectory.completion,
    "messages": lambda trajectory, state: trajectory.messages,
    "trajectory": lambda trajectory, state: trajectory,
    "state": lambda trajectory, state: state,
}
_GROUP: Mapping[str, Callable[[Sequence[Trajectory], Sequence[SimpleNamespace]], Any]] = {
    "task": lambda trajectories, states: trajectories[0].task,
    "prompt": lambda trajectories, states: trajectories[0].task.prompt,
    "answer": lambda trajectories, states: trajectories[0].task.answer,
    "info": lambda trajectories, states: trajectories[0].task.info,
    "trajectories": lambda trajectories, states: trajectories,
    "states": lambda trajectories, states: states,
}


F = TypeVar("F", bound=RewardFunction)


@dataclass(frozen=True, slots=True)
class _Function:
    """One reward function with its arguments resolved to what they are read from.

    `scores` are the names it returns values under; None for a single number under its own name.
    """

    name: str
    call: RewardFunction
    arguments: tuple[tuple[str, Callable[[Any, Any], Any]], ...]
    group: bool
    waits: bool
    scores: tuple[str, ...] | None


def scores(**weights: float) -> Callable[[F], F]:
    """Says that a reward function returns several named scores, and how much each counts beside the others.

        @scores(accuracy=1.0, style=0.2, words=0.0)
        def quality(completion) -> dict[str, float]: ...

        Rubric({quality: 0.5})        # accuracy at 0.5, style at 0.1, words only observed

    The function returns a mapping with exactly these names (one that judges groups: a list of numbers for each).
    """

    def mark(function: F) -> F:
        function.scores = weights  # type: ignore[attr-defined]
        return function

    return mark


class Rubric:
    """Reward functions by name, each with a weight; weight 0 makes a metric, observed and not rewarded.

    A function is sync or async and returns a finite number. It is given, by name, what its parameters ask for: `task`,
    `prompt`, `answer`, `info`, `completion` (the text of the model's last message), `messages`, `trajectory`, `state`
    (what the harness keeps for this rollout). A function with a parameter `trajectories` judges a whole group: it may
    ask for `states`, `task`, `prompt`, `answer` and `info` besides, and returns one number per trajectory. A function
    may return several named scores: then its weight is a mapping from their names (see also `scores`). In place of a
    number, one that judges a rollout may return a list with a number per turn: their sum is its score, and credit that
    looks at turns (`algorithm=turn_level`, `ppo`) learns which of them earned it.

        Rubric({correct: 1.0, brief: 0.1, turns_used: 0.0})
        Rubric({correct: 1.0, quality: {"style": 0.2, "words": 0.0}})

    Args:
        functions: reward functions and their weights.

    Raises:
        ConfigError: a parameter that does not exist, two scores of one name, a weight that is no finite number.
    """

    def __init__(self, functions: Mapping[RewardFunction, float | Mapping[str, float]]) -> None:
        self._functions: list[_Function] = []
        weights: dict[str, float] = {}
        for call, weight in functions.items():
            function, own = _inspect(call, weight)
            taken = {*weights, *(known.name for known in self._functions)}
            if twice := sorted(taken & {function.name, *own}):
                raise ConfigError(f"two reward functions are called '{twice[0]}'; rename one")
            weights.update(own)
            self._functions.append(function)
        self._own = [function for function in self._functions if not function.group]
        self._of_groups = [function for function in self._functions if function.group]
        self.weights: Mapping[str, float] = MappingProxyType(weights)

    @property
    def judges_groups(self) -> bool:
        """Whether a function compares the rollouts of a group."""
        return bool(self._of_groups)

    @property
    def needs_state(self) -> tuple[str, ...]:
        """The functions that ask for what the harness keeps, which a saved trajectory does not have."""
        return tuple(f.name for f in self._functions if {"state", "states"} & {name for name, _ in f.arguments})

    def reweight(self, weights: Mapping[str, float]) -> Rubric:
        """The same functions with some weights changed, by name.

        Raises:
            ConfigError: for the name of no score.
        """
        for name in weights:
            if name not in self.weights:
                raise unknown_name("reward function", name, self.weights)
        return Rubric(self._with({**self.weights, **weights}))

    def extend(self, functions: Mapping[RewardFunction, float | Mapping[str, float]]) -> Rubric:
        """This rubric and further functions.

        Raises:
            ConfigError: as for a rubric.
        """
        return Rubric({**self._with(self.weights), **functions})

    def _with(self, weights: Mapping[str, float]) -> dict[RewardFunction, float | Mapping[str, float]]:
        return {
            f.call: weights[f.name] if f.scores is None else {name: weights[name] for name in f.scores}
            for f in self._functions
        }

    async def score(self, trajectory: Trajectory, state: SimpleNamespace, *, retries: int = 0) -> None:
        """Runs the functions that judge a rollout by itself and fills `rewards` and `metrics`.

        `reward` follows here, unless functions that judge groups are still to come. A function that raises (or returns
        anything but a finite number) sets `failure` and leaves `reward` None; an infrastructure failure, of a judge
        for example, is tried again first. A trajectory that has already failed is left alone.

        Args:
            trajectory: a finished rollout.
            state: what its harness kept.
            retries: how often a function is called again after an infrastructure failure.
        """
        if trajectory.failure is not None:
            return
        now, waiting = ([f for f in self._own if f.waits is waits] for waits in (False, True))
        check = partial(_number_or_turns, turns=len(trajectory.turns))
        outcomes = {f.name: await call_function(f, trajectory, state, check, retries) for f in now}
        if waiting:  # together, because judges wait for other models
            results = await asyncio.gather(*(call_function(f, trajectory, state, check, retries) for f in waiting))
            outcomes.update(zip((f.name for f in waiting), results, strict=True))
        for function in self._own:
            self._enter(trajectory, outcomes[function.name])
        if not self.judges_groups:
            self._total(trajectory)

    async def score_group(
        self, trajectories: Sequence[Trajectory], states: Sequence[SimpleNamespace], *, retries: int = 0
    ) -> None:
        """Runs the functions that judge a group, after `score` on each of its trajectories, and sets `reward`.

        Failed trajectories are left out: a group function sees the others alone.
        """
        if not self.judges_groups:
            return
        alive = [(t, s) for t, s in zip(trajectories, states, strict=True) if t.failure is None]
        if not alive:
            return
        members, kept = [t for t, _ in alive], [s for _, s in alive]
        for function in self._of_groups:
            outcome = await call_function(function, members, kept, lambda value: _numbers(value, len(members)), retries)
            for i, trajectory in enumerate(members):
                own = outcome if isinstance(outcome, Failure) else {name: v[i] for name, v in outcome.items()}
                self._enter(trajectory, own)
        for trajectory in members:
            self._total(trajectory)

    def _enter(self, trajectory: Trajectory, outcome: Mapping[str, float | list[float]] | Failure) -> None:
        if isinstance(outcome, Failure):
            trajectory.failure = trajectory.failure or outcome
            return
        for name, value in outcome.items():
            weight = self.weights[name]
            if isinstance(value, list):
                before = trajectory.turn_rewards or [0.0] * len(value)
                if weight:
                    trajectory.turn_rewards = [b + weight * v for b, v in zip(before, value, strict=True)]
                value = math.fsum(value)
            (trajectory.rewards if weight else trajectory.metrics)[name] = value

    def _total(self, trajectory: Trajectory) -> None:
        if trajectory.failure is None:
            # In the rubric's order, so that the sum is the same to the last bit however the functions finished.
            rewards = trajectory.rewards
            trajectory.reward = sum((w * rewards[name] for name, w in self.weights.items() if w), 0.0)


def _inspect(call: RewardFunction, weight: Any) -> tuple[_Function, dict[str, float]]:
    """A reward function, and the weights of what it returns by name."""
    name = getattr(call, "__name__", "")
    if not name:
        raise ConfigError(f"the reward function {call!r} has no name; define it with `def`")
    arguments = inspect.signature(call).parameters
    group = "trajectories" in arguments
    allowed: Mapping[str, Callable[[Any, Any], Any]] = _GROUP if group else _ROLLOUT
    for argument, parameter in arguments.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigError(f"reward function '{name}': arguments are given by name; found '{parameter}'")
        if argument not in allowed:
            whole = "a function with 'trajectories'" if group else "one"
            hint = f"'{name}' asks for it; {whole} can ask for the known ones; bind anything else in a closure"
            raise unknown_name("reward function argument", argument, allowed, hint)
    waits = inspect.iscoroutinefunction(call)
    declared: Mapping[str, float] | None = getattr(call, "scores", None)
    weights = {name: _finite_weight(name, weight)} if not isinstance(weight, Mapping) else dict(weight)
    if declared is not None and isinstance(weight, Mapping):
        for score in [*weight, *declared]:
            if score not in declared or score not in weight:
                raise unknown_name(f"score of '{name}'", score, declared, "give a weight to each of them")
    elif declared is not None:
        weights = {score: weights[name] * share for score, share in declared.items()}
    weights = {score: _finite_weight(score, value) for score, value in weights.items()}
    named = tuple(weights) if declared is not None or isinstance(weight, Mapping) else None
    reads = tuple((argument, allowed[argument]) for argument in arguments)
    return _Function(name, call, reads, group, waits, named), weights


async def call_function(
    function: _Function, subject: Any, state: Any, check: Callable[[Any], Any], retries: int
) -> dict[str, Any] | Failure:
    """What the function returned by name, or why it could not."""
    while True:
        try:
            value = function.call(**{name: read(subject, state) for name, read in function.arguments})
            if inspect.isawaitable(value):
                value = await value
            if function.scores is None:
                return {function.name: check(value)}
            if not isinstance(value, Mapping) or value.keys() != set(function.scores):
                raise TypeError(f"expected a mapping with the scores {', '.join(function.scores)}; found {value!r}")
            return {name: check(value[name]) for name in function.scores}
        except INFRASTRUCTURE as error:
            if retries <= 0:
                return Failure("infrastructure", type(error).__name__, str(error), function.name)
            retries -= 1
        except Exception as error:  # noqa: BLE001 - a bug in a reward function becomes part of the record
            return Failure("reward", type(error).__name__, str(error), function.name, traceback.format_exc())


def _number(value: Any) -> float:
    if not hasattr(type(value), "__float__"):
        raise TypeError(f"expected a finite number, found {value!r} ({type(value).__name__})")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, found {value!r}")
    return number


def _number_or_turns(value: Any, turns: int) -> float | list[float]:
    if not isinstance(value, list | tuple):
        return _number(value)
    if len(value) != turns:
        raise TypeError(f"expected a number, or one per turn, of which there were {turns}; found {value!r}")
    return [_number(each) for each in value]


def _numbers(values: Any, count: int) -> list[float]:
    if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != count:
        raise TypeError(f"expected {count} numbers, one per trajectory, found {values!r}")
    return [_number(value) for value in values]


def _finite_weight(name: str, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ConfigError(f"the weight of reward function '{name}' is {weight!r}; expected a finite number")
    return float(weight)
