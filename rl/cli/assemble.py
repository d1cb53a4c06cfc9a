"""From the groups of a step to the batch of its update: credit, demonstrations beside rollouts, teachers, packing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np

from envs.concurrency import together
from envs.environment import Environment
from envs.render import Renderer
from rl.algorithms import Algorithm
from rl.algorithms.components import Component
from rl.data.pack import Segment, lay, unpack
from rl.inference.teacher import Heard, ServedTeacher
from rl.rollout.demonstrations import Demonstrations
from rl.rollout.privileged import instruct
from rl.rollout.select import Selection, within
from rl.rollout.steps import Steps
from rl.trainer.credit import Groups, credit, rolled
from rl.trainer.reference import Look
from rl.trainer.state import TrainState
from rl.types import Batch


@dataclass(frozen=True)
class Gathering:
    """Collects steps: their rollouts, demonstrations beside them, and what a served teacher thinks of both.

    Attributes:
        sampled: the rollouts.
        mix: the demonstrations.
        renderer: of the policy.
        served: the teacher, if there is one.
    """

    sampled: Steps
    mix: Sequence[Demonstrations]
    renderer: Renderer
    served: ServedTeacher | None
    _shown: dict[int, list[Segment]] = field(default_factory=dict)
    _heard: dict[int, Heard] = field(default_factory=dict)

    async def collect(self, step: int) -> Groups:
        """The groups of step `step` (from 0); what comes with them is kept until `forget`."""
        played = await together(each.of(step, self.renderer) for each in self.mix)
        self._shown[step] = [part for parts, _ in played for part in parts]
        groups = await self.sampled.collect(step)
        if self.served is not None:
            texts = [part.tokens for part in [*rolled(groups), *self._shown[step]]]
            self._heard[step] = await self.served.hear(texts)
        return groups

    def shown(self, step: int) -> list[Segment]:
        """The demonstrations of a step."""
        return self._shown[step]

    def heard(self, step: int, parts: Sequence[Segment]) -> list[np.ndarray] | None:
        """What the served teacher thinks of the sampled tokens of each segment; None without one."""
        if self.served is None:
            return None
        return [self._heard[step][tuple(part.tokens)][np.array(part.mask, bool)] for part in parts]

    def forget(self, step: int) -> None:
        """A step that was put into a batch is not asked about again."""
        self._shown.pop(step)
        self._heard.pop(step, None)


@dataclass(frozen=True)
class Assembly:
    """Makes the batch of an update.

    Attributes:
        algorithm: whose credit it is.
        environment: of the rollouts.
        renderer: of the policy.
        gathering: what came with the rollouts.
        selection: which tokens are left out.
        components: of the loss, where it has several: every segment gets its weights in them.
        pack: lays segments into rows.
        row_length: of these.
        reference: fills in what the reference says about a batch, where that is not a served teacher.
        look: what policy and critic say about each token, if credit asks.
        taught: fills in what a policy says that teaches itself.
    """

    algorithm: Algorithm
    environment: Environment
    renderer: Renderer
    gathering: Gathering
    selection: Selection
    components: Sequence[Component]
    pack: Callable[[list[Segment]], Batch]
    row_length: int
    reference: Callable[[Batch], Batch] | None
    look: Look
    taught: Callable[[TrainState, Sequence[Segment], Batch], Batch] | None

    def __call__(self, groups: Groups, state: TrainState) -> tuple[Batch, Mapping[str, float]]:
        """The batch, and what credit keeps for the next step."""
        step = int(state.step)

        def per_token(parts: list[Segment]) -> dict[str, list[np.ndarray]]:
            batch = self._packed(parts, step)
            told = {**batch._asdict(), **self.look(state, batch)}
            wanted = self.algorithm.asks - {"greedy"}
            return {name: unpack(parts, self.row_length, np.asarray(told[name])) for name in wanted}

        names = [self.environment.name] * len(groups)
        kept = {name: float(value) for name, value in state.kept.items()}
        credited = credit(self.algorithm, groups, per_token=per_token, environments=names, kept=kept)
        if self.algorithm.privilege is not None:
            instruct(credited.segments, groups, self.algorithm.privilege, self.environment, self.renderer)
        parts = [*within(credited.segments, self.selection), *self.gathering.shown(step)]
        if self.components:
            for part in parts:
                part.components = {name: (part.components or {"rl": 1.0}).get(name, 0.0) for name in self.components}
        batch = self._packed(parts, step)
        self.gathering.forget(step)
        return batch if self.taught is None else self.taught(state, parts, batch), credited.kept

    def _packed(self, parts: list[Segment], step: int) -> Batch:
        batch = self.pack(parts)
        said = self.gathering.heard(step, parts)
        if said is not None:
            return batch._replace(reference_logprobs=jnp.asarray(lay(parts, self.row_length, len(batch.tokens), said)))
        return batch if self.reference is None else self.reference(batch)
