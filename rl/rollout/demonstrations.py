"""What an expert would do, as a policy would have done it: played through the harness, in the policy's tokens."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from envs.concurrency import together
from envs.environment import Environment
from envs.errors import UpswingError
from envs.render import ByteRenderer, Renderer
from envs.rollout import run_task
from envs.types import Message, Sampling, Task, Trajectory
from rl.data.pack import Segment, segments
from rl.inference.engine import Generation, TokenSampling
from rl.rollout.client import EngineClient
from rl.rollout.schedule import Schedule


async def demonstration(
    environment: Environment, task: Task, renderer: Renderer, *, sample: int = 0, seed: int = 0
) -> Trajectory:
    """The rollout of a model that says what demonstrator number `sample` shows.

    Prompts, descriptions of tools, results and the environment's words are those that a policy meets, since they come
    about in the same way; what the demonstrator wrote in their place is not looked at. Where the harness asks for more
    than was shown, the rollout is cut off there.

    Args:
        seed: of what the harness draws.

    Raises:
        ConfigError: if the environment shows no expert.
        UpswingError: if the rollout failed.
    """
    said = [message for message in environment.demonstration(task, sample) if message["role"] == "assistant"]
    client = EngineClient(_Recital(said, renderer), renderer)
    trajectory = await run_task(environment, task, client, sample=sample, sampling=Sampling(seed=seed), score=False)
    if trajectory.failure is not None:
        failure = trajectory.failure
        raise UpswingError(
            f"demonstration {sample} of task '{task.id}' cannot be played: {failure.where} raised {failure.error}: "
            f"{failure.message}; see `rl env validate`"
        )
    del trajectory.turns[len(said) :]
    return trajectory


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


async def demonstrated_texts(environment: Environment, tasks: int = 1000) -> list[str]:
    """What the demonstrations of the first tasks to train on say, descriptions of tools included; each message once."""
    renderer, texts = ByteRenderer(), dict[str, None]()
    chosen = list(environment.training_tasks().head(tasks))
    for first in range(0, len(chosen), _AT_ONCE):
        some = chosen[first : first + _AT_ONCE]
        for shown in await together(demonstration(environment, task, renderer) for task in some):
            texts |= dict.fromkeys(text for part in segments(shown) for text in renderer.texts(part.tokens))
    return list(texts)


_AT_ONCE = 32


class _Recital:
    """Says one message after the other, and the last one again and again."""

    def __init__(self, messages: Sequence[Message], renderer: Renderer) -> None:
        self._messages, self._renderer = messages, renderer
        self._said = 0

    async def generate(
        self, prompt_ids: Sequence[int], sampling: TokenSampling, *, request_id: str | None = None
    ) -> Generation:
        ids = self._renderer.answer(self._messages[min(self._said, len(self._messages) - 1)])
        self._said += 1
        zeros = [0.0] * len(ids)
        return Generation(ids, zeros, zeros, [0] * len(ids), "stop", ids[-1])
