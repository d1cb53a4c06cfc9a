"""Several attempts at one task, of which one is taken."""

import inspect
from collections.abc import Awaitable, Callable, Sequence

from envs.concurrency import together
from envs.environment import Harness
from envs.errors import ConfigError
from envs.rollout import Rollout

Choose = Callable[[Sequence[Rollout]], Awaitable[int] | int]


def best_of(harness: Harness, n: int, choose: Choose) -> Harness:
    """A harness that runs another one `n` times at once and goes on with the attempt that is chosen.

    The rollout's turns, messages and state become those of the chosen one; all attempts are records in
    `trajectory.roles`, "attempt 0" and so on. It stops as the chosen one did.

    Args:
        harness: what each attempt does.
        n: how many there are.
        choose: the number of the attempt to take, given all of them: a majority of their answers, a judge, a test.
            It does not see the task's answer unless it looks at it, as a reward function would. Sync or async.
    """
    if n < 1:
        raise ConfigError(f"best_of(n={n}); expected at least 1")

    async def run(rollout: Rollout, number: int) -> Rollout:
        attempt = rollout.role(f"attempt {number}")
        attempt.finish(await harness(attempt), 0.0)
        return attempt

    async def best(rollout: Rollout) -> str:
        attempts = await together(run(rollout, number) for number in range(n))
        chosen = choose(attempts)
        if inspect.isawaitable(chosen):
            chosen = await chosen
        rollout.adopt(attempts[chosen])
        return attempts[chosen].trajectory.stop

    return best


def majority(attempts: Sequence[Rollout]) -> int:
    """The first attempt whose last words, white space around them aside, are the most frequent."""
    said = [attempt.trajectory.completion.strip() for attempt in attempts]
    return said.index(max(said, key=said.count))
