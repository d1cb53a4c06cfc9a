"""The loop: rollouts, credit, pack, update, publish. `max_staleness = 0` is the synchronous case of the same code."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from envs.types import GREEDY
from rl.checkpoint import Checkpoints
from rl.data.pack import row_splits
from rl.models.base import Params
from rl.trainer.credit import Groups, sampled_tokens
from rl.trainer.state import TrainState
from rl.trainer.step import Apply, check_finite, check_mismatch
from rl.types import Batch

Collect = Callable[[int], Awaitable[Groups]]
Assemble = Callable[[Groups, TrainState], tuple[Batch, Mapping[str, float]]]
"""Credit and packing: the batch, and what credit keeps for the next step."""


class Collected(NamedTuple):
    """The rollouts that step number `step` (from 0) trains on, and how long they took."""

    step: int
    groups: Groups
    seconds: float


async def reinforce(
    state: TrainState,
    *,
    steps: int,
    collect: Collect,
    assemble: Assemble,
    apply: Apply,
    publish: Callable[[Params, int], Awaitable[None]],
    checkpoints: Checkpoints,
    on_step: Callable[[int, Groups, dict[str, float]], None],
    max_staleness: int = 0,
    lockstep: bool = False,
    mismatch_limit: float | None = None,
) -> TrainState:
    """Makes updates `state.step` … `steps - 1` from what `collect` brings.

    Args:
        state: where to begin; used up.
        steps: updates in all.
        collect: the groups of a step (from 0), a function of the step and the published policy.
        assemble: credit and packing, with what the state's policy and critic say about the tokens.
        apply: from `make_apply`.
        publish: hands parameters and their version to the engine.
        checkpoints: where states go.
        on_step: told the number of each update (from 1), its rollouts and its metrics.
        max_staleness: updates that sampling may be ahead of training.
        lockstep: from `rollouts`.
        mismatch_limit: from `check_mismatch`.

    Raises:
        MismatchError: when sampler and trainer have different models, after the update that showed it was recorded.
        NonFiniteError: after the last good state was written; so is the last state when the loop is cancelled.
    """
    version = int(state.step)
    await publish(state.params, version)
    try:
        # Closed on the way out, so that nothing is sampled ahead for a loop that has ended.
        async with aclosing(rollouts(collect, version, steps, max_staleness, lockstep)) as collected:
            async for step, groups, seconds in collected:
                observed = observe(groups, version)
                started = time.perf_counter()
                batch, kept = assemble(groups, state)
                state, metrics = await _to_its_end(apply, state, batch)
                check_finite(step + 1, metrics, (group[0].task.id for group in groups))
                state = state._replace(kept={name: jnp.float32(value) for name, value in kept.items()})
                update_seconds = time.perf_counter() - started
                version = step + 1
                speed = {
                    "sampled_tokens_per_s": total_tokens(groups) / seconds,
                    "trained_tokens_per_s": float((batch.segment_ids > 0).sum()) / update_seconds,
                    "packed": used_rows(batch),
                }
                # Before anything is awaited: an update that was made is also on record, whenever a cancellation comes.
                on_step(version, groups, {**observed, **metrics, **speed})
                check_mismatch(version, {**observed, **metrics}, mismatch_limit)
                await publish(state.params, version)
                if checkpoints.due(version, steps):
                    checkpoints.save(state)
    finally:
        checkpoints.save(state)
        checkpoints.wait()
    return state


async def rollouts(
    collect: Collect, first: int, steps: int, max_staleness: int, lockstep: bool = False
) -> AsyncGenerator[Collected, None]:
    """Yields the groups of steps `first` … `steps - 1`, in order, sampling ahead as far as staleness allows.

    Collection of step `k` begins only once update `k - 1 - max_staleness` was published (the consumer asks for the next
    step after it published), so no token is ever more than `max_staleness` versions old when it is trained on. In
    `lockstep`, it also ends before the next update begins: then every token is exactly that old (less in the first
    steps), whoever is faster, and what is sampled can be reproduced as in the synchronous case.
    """
    ahead: deque[asyncio.Task[tuple[Groups, float]]] = deque()
    try:
        for step in range(first, steps):
            while len(ahead) <= max_staleness and step + len(ahead) < steps:
                ahead.append(asyncio.ensure_future(_collected(collect, step + len(ahead))))
            if lockstep:
                await asyncio.gather(*ahead)
            yield Collected(step, *await ahead.popleft())
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


async def _to_its_end(apply: Apply, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, float]]:
    """Updates in a thread, so that sampling goes on. An update has used up its input: once begun, it is seen through,
    and a cancellation that comes meanwhile takes effect at the next await."""
    work = asyncio.ensure_future(asyncio.to_thread(apply, state, batch))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        result = await work
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()  # one request to cancel, delivered later: not two
        task.cancel()
        return result


async def _collected(collect: Collect, step: int) -> tuple[Groups, float]:
    started = time.perf_counter()
    groups = await collect(step)
    return groups, time.perf_counter() - started


def total_tokens(groups: Groups) -> int:
    """How many tokens the policy sampled in all of them."""
    return sum(sampled_tokens(t) for group in groups for t in group)


def observe(groups: Groups, version: int) -> dict[str, float]:
    """What the rollouts say, averaged over those that have a reward. Greedy ones are seen in `greedy_reward` alone.

    Keys: `reward`, `reward_std` (within groups), `rewards/*`, `metrics/*`, `turns`, `completion_tokens`, `truncated`,
    `row_splits` (turns whose prompt does not continue the tokens before it), `staleness` (versions behind `version`,
    mean over tokens), `failed` (a count), `greedy_reward`.
    """
    everything = [t for group in groups for t in group if t.reward is not None]
    scored = [t for t in everything if t.sample != GREEDY]
    greedy = [float(t.reward or 0.0) for t in everything if t.sample == GREEDY]
    values: dict[str, list[float]] = {}
    for t in scored:
        observed = {
            "reward": float(t.reward or 0.0),
            "turns": len(t.turns),
            "completion_tokens": sampled_tokens(t),
            "row_splits": row_splits(t),
            "truncated": any(turn.completion.finish_reason == "length" for turn in t.turns),
            **{f"rewards/{name}": value for name, value in t.rewards.items()},
            **{f"metrics/{name}": value for name, value in t.metrics.items()},
        }
        for name, value in observed.items():
            values.setdefault(name, []).append(float(value))
    by_group = [[t.reward for t in g if t.reward is not None and t.sample != GREEDY] for g in groups]
    spread = [np.std(rewards) for rewards in by_group if rewards]
    ages = [version - v for t in scored for turn in t.turns for v in turn.completion.versions or ()]
    return {
        **{name: float(np.mean(each)) for name, each in values.items()},
        "reward_std": float(np.mean(spread)),
        "staleness": float(np.mean(ages)) if ages else 0.0,
        "failed": float(sum(t.reward is None for group in groups for t in group)),
        **({"greedy_reward": float(np.mean(greedy))} if greedy else {}),
    }


def of_all_sampled(metrics: Mapping[str, float], kept: Groups, sampled: Groups, version: int) -> dict[str, float]:
    """The metrics of an update that learned from `kept`, with what `observe` says about all that was `sampled` for it:
    groups that were kept for their rewards tell little about how the policy does. The rate of sampling is that of all,
    too."""
    told = {**metrics, **observe(sampled, version)}
    if total_tokens(kept):
        told["sampled_tokens_per_s"] *= total_tokens(sampled) / total_tokens(kept)
    return told


def used_rows(batch: Batch) -> float:
    """Share of the packed tokens that are no padding, among rows that hold anything."""
    filled = np.asarray(batch.segment_ids) > 0
    rows = filled.any(axis=1)
    return float(filled[rows].mean()) if rows.any() else 0.0
