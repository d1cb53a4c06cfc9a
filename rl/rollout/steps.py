"""The rollouts of each training step: tasks drawn, rolled out, journaled, selected."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envs.seeds import derive_seed
from envs.types import Task
from rl.rollout.collect import Collector
from rl.rollout.journal import StepJournal
from rl.rollout.schedule import Schedule
from rl.rollout.select import Groups, LastRewards, Selected, Selection, select


@dataclass(frozen=True)
class Steps:
    """Collects steps, each a function of its number and the policy; what is on disk is not sampled again.

    Attributes:
        run: directory of the run.
        seed: its seed.
        schedule: which tasks a step has.
        collector: rolls them out.
        selection: which groups are trained on.
        prompts: groups per step.
        lag: how many updates sampling may be ahead of training (`max_staleness`).
        last: how tasks did; needed for a pool.
    """

    run: Path
    seed: int
    schedule: Schedule[Task]
    collector: Collector
    selection: Selection
    prompts: int
    lag: int
    last: LastRewards | None = None
    _selected: dict[int, Selected] = field(default_factory=dict)

    async def collect(self, step: int) -> Groups:
        """The groups that step `step` (from 0) trains on.

        Raises:
            NothingToLearn: when none passed the gate.
        """
        journal = self._journal(step)
        done = journal.done()
        # What was known when sampling could begin, whenever it did begin.
        known = {} if self.last is None else dict(self.last.after(step - self.lag))

        def draw(number: int, count: int, had: set[str]) -> Sequence[Task]:
            pool = self.selection.pool
            if pool is None and number == 0:
                return self.schedule.tasks(step)
            return self.schedule.drawn(step, number, count, had, lambda task: pool is None or pool(known.get(task)))

        async def roll(tasks: Sequence[Task]) -> Groups:
            ids = {task.id for task in tasks}
            before = [t for t in done if t.task.id in ids]
            return await self.collector.collect(tasks, derive_seed(self.seed, "rollout", step), before, journal.append)

        try:
            selected = await select(self.selection, self.prompts, draw, roll)
        finally:
            journal.close()
        self._selected[step] = selected
        return selected.kept

    def seal(self, step: int) -> Selected:
        """Puts away the rollouts of a step that was trained on; returns what was sampled for it."""
        selected = self._selected.pop(step)
        self._journal(step).seal(selected.kept, selected.left)
        if self.last is not None:
            self.last.add(step + 1, selected.sampled)
        return selected

    def _journal(self, step: int) -> StepJournal:
        return StepJournal(self.run / "rollouts", step + 1)
