"""What an environment adds around the turns of a harness: state, resources, stop conditions, collecting at the end."""

import inspect
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from envs.errors import ContextLengthError
from envs.rollout import Rollout

Hook = Callable[[Rollout], Awaitable[None] | None]
StopCondition = Callable[[Rollout], Awaitable[bool] | bool]


@dataclass(frozen=True)
class Hooks:
    """Functions that a harness calls with the rollout, sync or async; all are optional.

        @dataclass
        class Game:                      # the rollout's state, typed
            board: Board

        def begin(rollout):
            rollout.state = Game(Board(rollout.task.info["seed"]))

        Hooks(on_setup=begin, stop={"won": lambda rollout: rollout.state.board.won})

    Attributes:
        on_setup: before the first turn: makes `rollout.state`, changes `rollout.messages`, opens what is needed.
        on_turn: at the end of each turn, after the environment or the tools have answered.
        on_stop: when the turns are over, also because time or context ran out: takes down what will be scored. Not
            called after an error.
        on_cleanup: at the very end, whatever happened, even where `on_setup` failed half-way: closes what it opened.
            Reward functions run later.
        stop: conditions by the word they stop the rollout with, looked at after `on_turn`, in order.
    """

    on_setup: Hook | None = None
    on_turn: Hook | None = None
    on_stop: Hook | None = None
    on_cleanup: Hook | None = None
    stop: Mapping[str, StopCondition] = field(default_factory=dict)


async def hooked(rollout: Rollout, hooks: Sequence[Hooks], play: Callable[[], Awaitable[str]]) -> str:
    """Sets up in order, plays, stops, and cleans up in reverse order.

    Returns:
        what `play` returned: why the rollout stopped.
    """
    async with AsyncExitStack() as cleanups:
        for hook in hooks:
            if hook.on_cleanup is not None:
                cleanups.push_async_callback(_call, hook.on_cleanup, rollout)
            if hook.on_setup is not None:
                await _call(hook.on_setup, rollout)
        try:
            stop = await play()
        except (ContextLengthError, CancelledError):  # the environment's time-out cancels; what there is is scored
            await _stop(rollout, hooks)
            raise
        await _stop(rollout, hooks)
    return stop


async def end_turn(rollout: Rollout, hooks: Sequence[Hooks]) -> str:
    """Calls every `on_turn` and returns the word of the first stop condition that holds, or ""."""
    for hook in hooks:
        if hook.on_turn is not None:
            await _call(hook.on_turn, rollout)
    for hook in hooks:
        for word, condition in hook.stop.items():
            holds = condition(rollout)
            if await holds if inspect.isawaitable(holds) else holds:
                return word
    return ""


async def _stop(rollout: Rollout, hooks: Sequence[Hooks]) -> None:
    for hook in hooks:
        if hook.on_stop is not None:
            await _call(hook.on_stop, rollout)


async def _call(hook: Hook, rollout: Rollout) -> None:
    result = hook(rollout)
    if inspect.isawaitable(result):
        await result
