"""An environment: the problems, the way a model is driven through one, and what counts as good."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envs.errors import ConfigError
from envs.rubric import Rubric
from envs.taskset import Taskset
from envs.types import Message, Task

if TYPE_CHECKING:
    from envs.rollout import Rollout

Harness = Callable[["Rollout"], Awaitable[str]]
"""Drives a model through one task and returns why it stopped: "completed", "max_turns", "length" or its own word."""


@dataclass(frozen=True)
class Environment:
    """One thing for evaluation, data, training, prompts and monitoring alike.

    Attributes:
        tasks: the problems.
        harness: drives a model through one of them.
        rubric: scores what came of it.
        name: what the environment is called; set by `load_environment`.
        version: of the package it came from; set by `load_environment`.
        demonstrate: `demonstrate(task, sample)`: the messages that demonstrator number `sample` would add to the task's
            prompt (a text stands for one assistant message), the same at every call;
            what a supervised warm start learns from.
        timeout: the most seconds a rollout may take; what the model achieved until then is scored.
    """

    tasks: Taskset
    harness: Harness
    rubric: Rubric
    name: str = ""
    version: str = ""
    demonstrate: Callable[[Task, int], Sequence[Message] | str] | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        for field, kind in (("tasks", Taskset), ("rubric", Rubric)):
            value = getattr(self, field)
            if not isinstance(value, kind):
                raise ConfigError(f"Environment({field}=…) is a {type(value).__name__}; expected a {kind.__name__}")
        if not callable(self.harness):
            raise ConfigError(f"Environment(harness={self.harness!r}); expected a harness, for example single_turn()")
        if self.timeout is not None and not self.timeout > 0:
            raise ConfigError(f"Environment(timeout={self.timeout!r}); expected a positive number of seconds or None")

    def training_tasks(self, split: str = "train") -> Taskset:
        """The tasks of a split, to be trained on.

        Raises:
            ConfigError: if they are for evaluation only, or there is no such split.
        """
        reserved, splits = self.tasks.reserved, self.tasks.splits
        if split in reserved or (split not in splits and reserved == set(splits)):
            kept = split if split in reserved else "', '".join(splits)
            raise ConfigError(
                f"environment '{self.name}' has no tasks to train on: its split '{kept}' is for evaluation only; "
                "use it with `rl eval`, and train in another environment, or in this one with other arguments (env.…)"
            )
        return self.tasks.split(split)

    def demonstration(self, task: Task, sample: int = 0) -> tuple[Message, ...]:
        """What an expert would add to the task's prompt: at least one assistant message.

        Raises:
            ConfigError: if the environment has no `demonstrate`, or it returned something else.
        """
        if self.demonstrate is None:
            raise ConfigError(f"environment '{self.name}' shows no expert; give it Environment(demonstrate=…)")
        shown = self.demonstrate(task, sample)
        messages: tuple[Message, ...]
        messages = ({"role": "assistant", "content": shown},) if isinstance(shown, str) else tuple(shown)
        if not any(message["role"] == "assistant" for message in messages):
            raise ConfigError(
                f"environment '{self.name}': demonstrate({task.id!r}, {sample}) has no assistant message: {shown!r}"
            )
        return messages
