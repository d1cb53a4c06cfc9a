import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pytest_asyncio

from envs import Completion, Environment, Failure, Rubric, Sampling, Task, Taskset, Trajectory, Turn, single_turn
from envs.render import ByteRenderer
from rl.algorithms import dr_grpo, grpo
from rl.checkpoint import Checkpoints
from rl.data.pack import pack
from rl.inference.jax_engine import JaxEngine
from rl.models.base import Model, Params
from rl.rollout.client import EngineClient
from rl.rollout.collect import Collector
from rl.rollout.schedule import Schedule
from rl.trainer.credit import Groups, credit
from rl.trainer.loop import observe, of_all_sampled, reinforce, rollouts, used_rows
from rl.trainer.optimizer import adamw
from rl.trainer.state import TrainState, init_state
from rl.trainer.step import Apply, NonFiniteError, make_apply
from rl.trainer.update import make_score, make_update
from rl.types import Batch

TASK = Task.ask("a", "?")


def trajectory(reward: float | None, *turns: Sequence[int], versions: int = 0, **rewards: float) -> Trajectory:
    """A rollout whose turns sampled these tokens; without a reward it failed."""
    record = Trajectory(TASK, reward=reward, rewards=rewards, metrics={"length": float(sum(map(len, turns)))})
    ids: list[int] = [1, 2]
    for n, sampled in enumerate(turns):
        message = {"role": "assistant", "content": ""}
        reason = "length" if sampled[-1] == 9 else "stop"
        completion = Completion(message, reason, [*ids], [*sampled], [-1.0] * len(sampled), [versions] * len(sampled))  # type: ignore[arg-type]
        record.turns.append(Turn((), completion, fresh=n == 0))
        ids += [*sampled, 3]
    if reward is None:
        record.failure = Failure("infrastructure", "ConnectionError", "gone")
    return record


# Sampling ahead


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
async def test_steps_come_in_order_and_no_token_is_too_old(max_staleness: int) -> None:
    published, running, most = 2, 0, 0
    begun: dict[int, int] = {}

    async def collect(step: int) -> Groups:
        nonlocal running, most
        begun[step] = published
        running += 1
        most = max(most, running)
        for _ in range(5 - step % 3):  # some take longer than those after them
            await asyncio.sleep(0)
        running -= 1
        return [[trajectory(float(step), [4], versions=begun[step])]]

    order = []
    async for step, groups, seconds in rollouts(collect, first=2, steps=9, max_staleness=max_staleness):
        assert groups[0][0].reward == step and seconds >= 0
        assert observe(groups, published)["staleness"] == min(step - 2, max_staleness)
        await asyncio.sleep(0)
        published += 1
        order.append(step)
    assert order == [2, 3, 4, 5, 6, 7, 8]
    assert begun == {step: max(2, step - max_staleness) for step in order}
    assert most == max_staleness + 1


async def test_in_lockstep_all_tokens_are_equally_old() -> None:
    published, finished = 3, {}

    async def collect(step: int) -> Groups:
        for _ in range(4 * (9 - step)):  # the last ones are done first
            await asyncio.sleep(0)
        finished[step] = published
        return [[trajectory(float(step), [4], versions=published)]]

    ages = []
    async for _, groups, _ in rollouts(collect, first=3, steps=9, max_staleness=2, lockstep=True):
        ages.append(observe(groups, published)["staleness"])
        await asyncio.sleep(0)
        published += 1
    assert ages == [0, 1, 2, 2, 2, 2] and finished == {3: 3, 4: 3, 5: 3, 6: 4, 7: 5, 8: 6}


async def test_a_step_that_fails_stops_those_ahead_of_it() -> None:
    begun: set[int] = set()
    ended: set[int] = set()

    async def collect(step: int) -> Groups:
        begun.add(step)
        try:
            await asyncio.sleep(0 if step < 2 else 60)
        finally:
            ended.add(step)
        if step == 1:
            raise ConnectionError("gone")
        return []

    seen = []
    with pytest.raises(ConnectionError, match="gone"):
        async for step, _, _ in rollouts(collect, 0, 9, max_staleness=3):
            seen.append(step)
    assert (seen, ended) == ([0], begun) and {0, 1, 2, 3} <= begun


async def test_leaving_the_loop_ends_what_is_being_sampled() -> None:
    ended: list[int] = []

    async def collect(step: int) -> Groups:
        try:
            await asyncio.sleep(0 if step == 0 else 60)
        except asyncio.CancelledError:
            ended.append(step)
            raise
        return []

    async with aclosing(rollouts(collect, 0, 9, max_staleness=2)) as steps:
        async for _ in steps:
            await asyncio.sleep(0)
            break
    assert sorted(ended) == [1, 2]


# From groups to numbers


def test_credit_leaves_out_what_failed() -> None:
    groups = [
        [trajectory(1.0, [4]), trajectory(None, [5]), trajectory(3.0, [6], [7])],
        [trajectory(None), trajectory(None), trajectory(None, [8])],
        [trajectory(5.0, [9]), trajectory(None), trajectory(None)],
    ]
    parts = credit(dr_grpo(), groups).segments
    assert [(p.tokens, p.advantage, p.rollout_tokens) for p in parts] == [
        ([1, 2, 4], -1.0, 1),
        ([1, 2, 6, 3, 7], 1.0, 2),
        ([1, 2, 9], 0.0, 1),  # alone in its group: nothing to compare with
    ]
    assert credit(grpo(), groups).segments[1].advantage == pytest.approx(0.7071, abs=1e-4)


def test_what_is_observed() -> None:
    groups = [
        [trajectory(1.0, [4, 5], versions=3, correct=1.0), trajectory(0.0, [4], [5, 6, 9], versions=5, correct=0.0)],
        [trajectory(None), trajectory(4.0, [4], versions=5, correct=0.5)],
    ]
    assert observe(groups, version=5) == {
        "reward": pytest.approx(5 / 3),
        "reward_std": pytest.approx(0.25),  # 0.5 in the first group, 0 in the second
        "rewards/correct": 0.5,
        "metrics/length": pytest.approx(7 / 3),
        "turns": pytest.approx(4 / 3),
        "completion_tokens": pytest.approx(7 / 3),
        "row_splits": 0.0,
        "truncated": pytest.approx(1 / 3),
        "staleness": pytest.approx(4 / 7),  # two of seven tokens are two versions old
        "failed": 1.0,
    }


def test_greedy_rollouts_are_observed_by_themselves() -> None:
    greedy = trajectory(9.0, [4, 5, 6], [7])
    greedy.sample = -1
    found = observe([[trajectory(1.0, [4]), trajectory(2.0, [4]), greedy]], version=0)
    assert (found["reward"], found["reward_std"], found["turns"], found["greedy_reward"]) == (1.5, 0.5, 1.0, 9.0)


def test_what_was_left_out_is_on_record_beside_what_was_kept() -> None:
    kept = [[trajectory(1.0, [4, 5]), trajectory(0.0, [4, 5])]]
    left = [[trajectory(1.0, [4]), trajectory(1.0, [4])], [trajectory(1.0, [4]), trajectory(1.0, [4])]]
    learned = {**observe(kept, 0), "loss": 0.25, "sampled_tokens_per_s": 100.0}
    told = of_all_sampled(learned, kept, [*kept, *left], 0)
    assert (learned["reward"], told["reward"]) == (0.5, pytest.approx(5 / 6))
    assert told["reward_std"] == pytest.approx(0.5 / 3)
    assert (told["loss"], told["sampled_tokens_per_s"]) == (0.25, 200.0)  # four tokens were kept, of eight


def test_used_rows_are_those_that_hold_anything() -> None:
    parts = credit(dr_grpo(), [[trajectory(1.0, [4, 5]), trajectory(0.0, [4])]]).segments
    assert used_rows(pack(parts, row_length=8, rows_multiple=4)) == 7 / 8
    assert used_rows(pack([], row_length=8, rows_multiple=4)) == 0.0


# The whole loop, with the engine


def digits(completion: str) -> float:
    """Share of digits: something that a random model does now and then."""
    return sum(c.isdigit() for c in completion) / max(1, len(completion))


SUMS = Environment(
    Taskset({"train": [Task.ask(f"t{i}", str(i)) for i in range(6)]}), single_turn(), Rubric({digits: 1.0})
)
STEPS = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Model, params: Params) -> AsyncIterator[JaxEngine]:
    engine = JaxEngine(model, params, slots=8, tokens_per_dispatch=4, exact=True)
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def apply(model: Model) -> Apply:
    algorithm, optimizer = grpo(), adamw(lr=3e-3, steps=STEPS)
    update = make_update(make_score(model), algorithm, optimizer, microbatch_rows=4)
    return make_apply(update, {**algorithm.hyper, **optimizer.hyper, "temperature": 0.9})


def first_state(params: Params) -> TrainState:
    return init_state(jax.tree.map(jnp.copy, params), adamw(steps=STEPS))


def assemble(groups: Groups, state: TrainState) -> tuple[Batch, dict[str, float]]:
    return pack(credit(grpo(), groups).segments, row_length=16, rows_multiple=4, min_rows=8), {}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("max_staleness", [0, 2])
async def test_training_with_the_engine(
    engine: JaxEngine, apply: Apply, params: Params, tmp_path: Path, max_staleness: int
) -> None:
    schedule = Schedule(SUMS.tasks, 2, seed=0)
    collector = Collector(SUMS, EngineClient(engine, ByteRenderer()), 4, Sampling(0.9, max_tokens=6))
    steps: list[tuple[int, dict[str, float]]] = []
    trained_on: list[list[str]] = []

    def on_step(step: int, groups: Groups, metrics: dict[str, float]) -> None:
        steps.append((step, metrics))
        trained_on.append([group[0].task.id for group in groups])

    checkpoints = Checkpoints(tmp_path, every=2, keep=3)
    state = await reinforce(
        first_state(params),
        steps=STEPS,
        collect=lambda step: collector.collect(schedule.tasks(step), seed=step),
        assemble=assemble,
        apply=apply,
        publish=engine.load_weights,
        checkpoints=checkpoints,
        on_step=on_step,
        max_staleness=max_staleness,
    )
    assert [step for step, _ in steps] == [1, 2, 3, 4] and state.step == engine.version == 4
    assert trained_on == [[task.id for task in schedule.tasks(step)] for step in range(4)]
    assert checkpoints.steps() == [2, 4]
    ages = [metrics["staleness"] for _, metrics in steps]
    if max_staleness == 0:
        assert ages == [0.0] * 4
        assert all(metrics["mismatch/abs"] < 1e-5 for _, metrics in steps), "the sampler's and the trainer's log-probs"
    else:
        assert ages[0] == 0.0 and max(ages) > 0 and all(age <= max_staleness for age in ages)
        assert max(metrics["mismatch/abs"] for _, metrics in steps) > 1e-4, "what is old is off policy"
    assert all(metrics["failed"] == 0 and metrics["nonfinite"] == 0 for _, metrics in steps)
    loaded = checkpoints.load(state)
    assert loaded is not None
    for found, kept in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(found, kept)


async def one_group(step: int) -> Groups:
    return [[trajectory(1.0, [4]), trajectory(0.0, [5])]]


async def nowhere(params: Params, version: int) -> None:
    """Publishes to nobody."""


async def test_a_loss_that_is_no_number_ends_training_after_the_last_good_state_was_kept(
    apply: Apply, params: Params, tmp_path: Path
) -> None:
    def poisoned(groups: Groups, state: TrainState) -> tuple[Batch, dict[str, float]]:
        batch, kept = assemble(groups, state)
        return batch._replace(advantages=batch.advantages * (np.nan if next(steps) == 2 else 1)), kept

    steps, checkpoints, done = iter(range(9)), Checkpoints(tmp_path, every=100, keep=2), []
    with pytest.raises(
        NonFiniteError, match=r"update 3: the loss is not finite \(loss nan, .*\); tasks: a\. The weights"
    ):
        await reinforce(
            first_state(params),
            steps=STEPS,
            collect=one_group,
            assemble=poisoned,
            apply=apply,
            publish=nowhere,
            checkpoints=checkpoints,
            on_step=lambda step, groups, metrics: done.append(step),
        )
    assert (done, checkpoints.steps()) == ([1, 2], [2])
    kept = checkpoints.load(first_state(params))
    assert kept is not None and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.params))


async def test_nothing_is_sampled_any_more_once_training_ended(apply: Apply, params: Params, tmp_path: Path) -> None:
    ended: list[int] = []

    async def collect(step: int) -> Groups:
        try:
            await asyncio.sleep(0 if step == 0 else 60)
            return await one_group(step)
        finally:
            ended.append(step)

    def poisoned(groups: Groups, state: TrainState) -> tuple[Batch, dict[str, float]]:
        batch, kept = assemble(groups, state)
        return batch._replace(advantages=batch.advantages * np.nan), kept

    with pytest.raises(NonFiniteError):
        await reinforce(
            first_state(params),
            steps=STEPS,
            collect=collect,
            assemble=poisoned,
            apply=apply,
            publish=nowhere,
            checkpoints=Checkpoints(tmp_path, every=100, keep=2),
            on_step=lambda step, groups, metrics: None,
            max_staleness=2,
        )
    assert sorted(ended) == [0, 1, 2]


async def test_an_update_that_is_interrupted_is_seen_through_and_kept(
    apply: Apply, params: Params, tmp_path: Path
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, float]]:
        result = apply(state, batch)  # uses up what it was given
        begun.set()
        assert go_on.wait(60)
        return result

    checkpoints = Checkpoints(tmp_path, every=100, keep=2)
    training = asyncio.create_task(
        reinforce(
            first_state(params),
            steps=STEPS,
            collect=one_group,
            assemble=assemble,
            apply=slow,
            publish=nowhere,
            checkpoints=checkpoints,
            on_step=lambda step, groups, metrics: None,
        )
    )
    assert await asyncio.to_thread(begun.wait, 60)
    training.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await training
    kept = checkpoints.load(first_state(params))
    assert kept is not None and kept.step == 1
