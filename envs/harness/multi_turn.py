"""A conversation: the model speaks, the environment responds."""

import inspect
from collections.abc import Awaitable, Callable, Sequence

from envs.environment import Harness
from envs.errors import ConfigError
from envs.harness.hooks import Hooks, end_turn, hooked
from envs.rollout import Rollout
from envs.types import Message

Response = Sequence[Message] | str | None
Respond = Callable[[Rollout], Response | Awaitable[Response]]


def multi_turn(respond: Respond, *, max_turns: int, hooks: Sequence[Hooks] = ()) -> Harness:
    """A harness that lets `respond` answer the model until it returns None ("completed"), a stop condition holds, or
    `max_turns` are over.

    `respond` also sees the model's last turn, so that a game takes in the last move; what it says then ends the
    record. An answer that ran into `max_tokens` is passed on as it is.

    Args:
        respond: given the rollout, whose last message is the model's, returns what the environment says (a text stands
            for one user message), or None when the conversation is over. Sync or async.
        max_turns: the most completions.
        hooks: what happens before, between and after the turns.
    """
    if max_turns < 1:
        raise ConfigError(f"multi_turn(max_turns={max_turns}); expected at least 1")

    async def harness(rollout: Rollout) -> str:
        async def play() -> str:
            for _ in range(max_turns):
                await rollout.complete()
                response = respond(rollout)
                if inspect.isawaitable(response):
                    response = await response
                said = [] if response is None else response
                rollout.messages.extend([{"role": "user", "content": said}] if isinstance(said, str) else said)
                if stop := await end_turn(rollout, hooks):
                    return stop
                if response is None:
                    return "completed"
            return "max_turns"

        return await hooked(rollout, hooks, play)

    return harness
