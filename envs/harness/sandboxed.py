"""A sandbox for every rollout."""

from contextlib import AsyncExitStack

from envs.harness.hooks import Hooks
from envs.rollout import Rollout
from envs.sandbox.base import Limits
from envs.sandbox.pool import SandboxPool


def in_sandbox(pool: SandboxPool, limits: Limits | None = None) -> Hooks:
    """Hooks that give each rollout a sandbox, `rollout.state.sandbox`, for as long as its harness runs.

    Take down what is to be scored in an `on_stop` of hooks listed after these; reward functions run when the sandbox is
    gone. A grader runs in another one, `async with pool.sandbox()`, where the model has never been.
    """
    open_ones: dict[int, AsyncExitStack] = {}

    async def begin(rollout: Rollout) -> None:
        stack = open_ones[id(rollout)] = AsyncExitStack()
        rollout.state.sandbox = await stack.enter_async_context(pool.sandbox(limits))

    async def end(rollout: Rollout) -> None:
        await open_ones.pop(id(rollout)).aclose()

    return Hooks(on_setup=begin, on_cleanup=end)
