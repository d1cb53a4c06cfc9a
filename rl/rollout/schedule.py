"""Which tasks a step trains on: a function of (seed, step) alone, so that any step can be found again."""

from collections.abc import Sequence

import numpy as np

from envs.errors import ConfigError
from envs.seeds import derive_seed
from envs.types import Task


class Schedule:
    """Epochs over a split, each in its own random order, `prompts` tasks per step.

    A step never holds a task twice: what is left of an epoch after its last full step is left out of that epoch.

    Args:
        tasks: the training split.
        prompts: tasks per step.
        seed: the run's.

    Raises:
        ConfigError: when a step needs more tasks than there are.
    """

    def __init__(self, tasks: Sequence[Task], prompts: int, seed: int) -> None:
        if not 1 <= prompts <= len(tasks):
            raise ConfigError(
                f"a step takes {prompts} different tasks, but the split has {len(tasks)}; "
                f"lower prompts (or the batch) to at most {len(tasks)}, or make more tasks"
            )
        self._tasks = tasks
        self._prompts = prompts
        self._seed = seed
        self._order: tuple[int, np.ndarray] | None = None

    def epoch(self, step: int) -> int:
        """Which pass over the tasks this step (from 0) belongs to."""
        return step // (len(self._tasks) // self._prompts)

    def tasks(self, step: int) -> list[Task]:
        """The tasks of this step (from 0)."""
        steps_per_epoch = len(self._tasks) // self._prompts
        epoch, within = divmod(step, steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            rng = np.random.Generator(np.random.PCG64(derive_seed(self._seed, "epoch", epoch)))
            self._order = epoch, rng.permutation(len(self._tasks))
        chosen = self._order[1][within * self._prompts : (within + 1) * self._prompts]
        return [self._tasks[int(i)] for i in chosen]
