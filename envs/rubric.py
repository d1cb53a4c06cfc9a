"""What counts as good: named, weighted reward functions, and metrics that are only watched."""

from __future__ import annotations

import asyncio
import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

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


@dataclass(frozen=True, slots=True)
class _Function:
    """One reward function with its arguments resolved to what they are read from."""

    name: str
    call: RewardFunction
    arguments: tuple[tuple[str, Callable[[Any, Any], Any]], ...]
    group: bool
    waits: bool


class Rubric:
    """Reward functions by name, each with a weight; weight 0 makes a metric, observed and not rewarded.

    A function is sync or async and returns a finite number. It is given, by name, what its parameters ask for: `task`,
    `prompt`, `answer`, `info`, `completion` (the text of the model's last message), `messages`, `trajectory`, `state`
    (what the harness keeps for this rollout). A function with a parameter `trajectories` judges a whole group: it may
    ask for `states`, `task`, `prompt`, `answer` and `info` besides, and returns one number per trajectory.

        Rubric({correct: 1.0, brief: 0.1, turns_used: 0.0})

    Args:
        functions: reward functions and their weights.

    Raises:
        ConfigError: a parameter that does not exist, two functions of one name, a weight that is no finite number.
    """

    def __init__(self, functions: Mapping[RewardFunction, float]) -> None:
        self._functions: dict[str, _Function] = {}
        weights: dict[str, float] = {}
        for call, weight in functions.items():
            function = _inspect(call)
            if function.name in self._functions:
                raise ConfigError(f"two reward functions are called '{function.name}'; rename one")
            self._functions[function.name] = function
            weights[function.name] = _finite_weight(function.name, weight)
        self._own = [function for function in self._functions.values() if not function.group]
        self._of_groups = [function for function in self._functions.values() if function.group]
        self.weights: Mapping[str, float] = MappingProxyType(weights)

    @property
    def judges_groups(self) -> bool:
        """Whether a function compares the rollouts of a group."""
        return bool(self._of_groups)

    def reweight(self, weights: Mapping[str, float]) -> Rubric:
        """The same functions with some weights changed, by name.

        Raises:
            ConfigError: for the name of no function.
        """
        for name in weights:
            if name not in self._functions:
                raise unknown_name("reward function", name, self._functions)
        return Rubric({f.call: weights.get(f.name, self.weights[f.name]) for f in self._functions.values()})

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
        outcomes = {f.name: await _call(f, trajectory, state, _number, retries) for f in now}
        if waiting:  # together, because judges wait for other models
            results = await asyncio.gather(*(_call(f, trajectory, state, _number, retries) for f in waiting))
            outcomes.update(zip((f.name for f in waiting), results, strict=True))
        for function in self._own:
            self._enter(trajectory, function.name, outcomes[function.name])
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
            outcome = await _call(function, members, kept, lambda value: _numbers(value, len(members)), retries)
            for i, trajectory in enumerate(members):
                self._enter(trajectory, function.name, outcome if isinstance(outcome, Failure) else outcome[i])
        for trajectory in members:
            self._total(trajectory)

    def _enter(self, trajectory: Trajectory, name: str, outcome: float | Failure) -> None:
        if isinstance(outcome, Failure):
            trajectory.failure = trajectory.failure or outcome
        elif self.weights[name]:
            trajectory.rewards[name] = outcome
        else:
            trajectory.metrics[name] = outcome

    def _total(self, trajectory: Trajectory) -> None:
        if trajectory.failure is None:
            # In the rubric's order, so that the sum is the same to the last bit however the functions finished.
            rewards = trajectory.rewards
            trajectory.reward = sum((w * rewards[name] for name, w in self.weights.items() if w), 0.0)


def _inspect(call: RewardFunction) -> _Function:
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
    return _Function(name, call, tuple((argument, allowed[argument]) for argument in arguments), group, waits)


async def _call(
    function: _Function, subject: Any, state: Any, check: Callable[[Any], Any], retries: int
) -> Any | Failure:
    """What the function returned, or why it could not."""
    while True:
        try:
            value = function.call(**{name: read(subject, state) for name, read in function.arguments})
            if inspect.isawaitable(value):
                value = await value
            return check(value)
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


def _numbers(values: Any, count: int) -> list[float]:
    if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != count:
        raise TypeError(f"expected {count} numbers, one per trajectory, found {values!r}")
    return [_number(value) for value in values]


def _finite_weight(name: str, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ConfigError(f"the weight of reward function '{name}' is {weight!r}; expected a finite number")
    return float(weight)
