"""Which tasks a step trains on: a function of (seed, step) alone, so that any step can be found again."""

from collections.abc import Callable, Collection, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from envs.errors import ConfigError
from envs.seeds import derive_seed


class Named(Protocol):
    """What has an id of its own."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Named)


class Schedule(Generic[T]):
    """Epochs over a split, each in its own random order, `prompts` tasks per step.

    A step never holds a task twice: what is left of an epoch after its last full step is left out of that epoch.

    Args:
        tasks: the training split (or pairs, or whatever steps are made of).
        prompts: tasks per step.
        seed: the run's.

    Raises:
        ConfigError: when a step needs more tasks than there are.
    """

    def __init__(self, tasks: Sequence[T], prompts: int, seed: int) -> None:
        if not 1 <= prompts <= len(tasks):
            raise ConfigError(
                f"a step takes {prompts} different tasks, but the split has {len(tasks)}; "
                f"lower prompts (or the batch) to at most {len(tasks)}, or make more tasks"
            )
        self._tasks = tasks
        self._prompts = prompts
        self._seed = seed
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def size(self) -> int:
        """Tasks per step."""
        return self._prompts

    def epoch(self, step: int) -> int:
        """Which pass over the tasks this step (from 0) belongs to."""
        return step // (len(self._tasks) // self._prompts)

    def tasks(self, step: int) -> list[T]:
        """The tasks of this step (from 0)."""
        steps_per_epoch = len(self._tasks) // self._prompts
        epoch, within = divmod(step, steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            rng = np.random.Generator(np.random.PCG64(derive_seed(self._seed, "epoch", epoch)))
            self._order = epoch, rng.permutation(len(self._tasks))
        chosen = self._order[1][within * self._prompts : (within + 1) * self._prompts]
        return [self._tasks[int(i)] for i in chosen]

    def drawn(
        self, step: int, number: int, count: int, had: Collection[str], eligible: Callable[[str], bool]
    ) -> list[T]:
        """Tasks out of the whole split, in an order of this step and draw: those that are eligible, then, if they are
        too few, others.

        Args:
            step: from 0.
            number: of the draw within the step.
            count: tasks wanted; there are fewer if the split is used up.
            had: ids of tasks that the step has already.
            eligible: by the id of a task.
        """
        rng = np.random.Generator(np.random.PCG64(derive_seed(self._seed, "draw", step, number)))
        chosen: list[T] = []
        others: list[T] = []
        for i in rng.permutation(len(self._tasks)):
            task = self._tasks[int(i)]
            if task.id not in had:
                (chosen if eligible(task.id) else others).append(task)
            if len(chosen) == count:
                break
        return [*chosen, *others][:count]
