"""What an environment's demonstrators do, step by step."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from envs.concurrency import together
from envs.environment import Environment
from envs.render import Renderer
from envs.types import Task
from rl.data.pack import Segment, segments
from rl.rollout.demonstration import demonstration
from rl.rollout.schedule import Schedule


class Demonstrations(NamedTuple):
    """Demonstrations of the tasks that a schedule says.

    Attributes:
        environment: shows them.
        schedule: whose tasks.
        seed: of what the harness draws.
        components: their weight in each component of the loss, for batches that have several.
    """

    environment: Environment
    schedule: Schedule[Task]
    seed: int
    components: Mapping[str, float] = MappingProxyType({})

    async def of(self, step: int, renderer: Renderer) -> tuple[list[Segment], list[str]]:
        """The segments of a step (from 0), and the ids of its tasks."""
        chosen = self.schedule.tasks(step)
        # Every pass over the tasks asks another demonstrator: nobody's mistakes can be learnt by heart.
        sample = self.schedule.epoch(step)
        shown = await together(
            demonstration(self.environment, task, renderer, sample=sample, seed=self.seed) for task in chosen
        )
        parts = [part for trajectory in shown for part in segments(trajectory)]
        for part in parts:
            part.components = self.components
        return parts, [task.id for task in chosen]
