"""Supervised training on demonstrations."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from envs.render import Renderer
from envs.types import Completion, Message, Task, Trajectory, Turn
from rl.checkpoint import Checkpoints
from rl.trainer.state import TrainState
from rl.trainer.step import Apply, check_finite
from rl.types import Batch


def demonstrated(task: Task, shown: Sequence[Message], renderer: Renderer) -> Trajectory:
    """A conversation as the trajectory a model would have left by saying just that: tokens, turns, no rewards.

    No harness is asked: for a file of conversations. What an environment's expert does, `rollout.demonstrations` plays.

    Args:
        shown: messages an expert adds to the task's prompt; its assistant messages are what is learned.
    """
    trajectory = Trajectory(task)
    conversation: list[Message] = list(task.prompt)
    pending = list(conversation)
    prompt: list[int] | None = None
    answer: list[int] = []
    for message in shown:
        if message["role"] == "assistant":
            before = prompt
            prompt = None if before is None else renderer.extend(before, answer, pending)
            prompt = renderer.prompt(conversation) if prompt is None else prompt
            answer = renderer.answer(message)
            completion = Completion(message, "stop", prompt, answer, [0.0] * len(answer))
            trajectory.turns.append(Turn(tuple(pending), completion, fresh=before is None))
            pending = []
        else:
            pending.append(message)
        conversation.append(message)
    return trajectory


async def supervise(
    state: TrainState,
    *,
    steps: int,
    batch_of: Callable[[int], Awaitable[tuple[Batch, Iterable[str]]]],
    apply: Apply,
    checkpoints: Checkpoints,
    on_step: Callable[[int, dict[str, float]], None],
) -> TrainState:
    """Makes updates `state.step` … `steps - 1`.

    Args:
        state: where to begin; used up.
        steps: updates in all.
        batch_of: the batch of a step (from 0), and the ids of its tasks.
        apply: from `make_apply`.
        checkpoints: where states go.
        on_step: told the number of each update (from 1) and its metrics.

    Raises:
        NonFiniteError: after the last good state was written.
    """
    try:
        for step in range(int(state.step), steps):
            started = time.perf_counter()
            batch, tasks = await batch_of(step)
            state, metrics = apply(state, batch)
            check_finite(step + 1, metrics, tasks)
            seconds = time.perf_counter() - started
            metrics |= {"seconds": seconds, "trained_tokens_per_s": float((batch.segment_ids > 0).sum()) / seconds}
            on_step(step + 1, metrics)
            if checkpoints.due(step + 1, steps):
                checkpoints.save(state)
            await asyncio.sleep(0)  # where Ctrl-C is heard
    finally:
        checkpoints.save(state)
        checkpoints.wait()
    return state
