"""A conversation: the model speaks, the environment responds."""

import inspect
from collections.abc import Awaitable, Callable, Sequence

from envs.environment import Harness
from envs.errors import ConfigError
from envs.rollout import Rollout
from envs.types import Message

Response = Sequence[Message] | str | None
Respond = Callable[[Rollout], Response | Awaitable[Response]]
Setup = Callable[[Rollout], Awaitable[None] | None]


def multi_turn(respond: Respond, *, max_turns: int, setup: Setup | None = None) -> Harness:
    """A harness that lets `respond` answer the model until it returns None ("completed") or `max_turns` are over.

    `respond` also sees the model's last turn, so that a game takes in the last move; what it says then ends the
    record. An answer that ran into `max_tokens` is passed on as it is.

    Args:
        respond: given the rollout, whose last message is the model's, returns what the environment says (a text stands
            for one user message), or None when the conversation is over. Sync or async.
        max_turns: the most completions.
        setup: prepares `rollout.state` or `rollout.messages` before the first turn. Sync or async.
    """
    if max_turns < 1:
        raise ConfigError(f"multi_turn(max_turns={max_turns}); expected at least 1")

    async def harness(rollout: Rollout) -> str:
        if setup is not None:
            prepared = setup(rollout)
            if inspect.isawaitable(prepared):
                await prepared
        for _ in range(max_turns):
            await rollout.complete()
            response = respond(rollout)
            if inspect.isawaitable(response):
                response = await response
            if response is None:
                return "completed"
            rollout.messages.extend([{"role": "user", "content": response}] if isinstance(response, str) else response)
        return "max_turns"

    return harness
