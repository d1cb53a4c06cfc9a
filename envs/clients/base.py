"""What a harness talks to."""

from collections.abc import Sequence
from typing import Protocol

from envs.types import Completion, Message, Sampling, ToolSchema, Turn


class Client(Protocol):
    """Completes conversations: an HTTP server, the trainer's own engine, or a script.

    Raises `InfrastructureError` when the answer could not be had (after the client's own retries), and
    `ContextLengthError` when the prompt does not fit. Anything the model answers, however bad, is an answer.
    """

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
        sampling: Sampling = Sampling(),
        *,
        previous: Turn | None = None,
    ) -> Completion:
        """Answers `messages`.

        Args:
            messages: the whole conversation so far.
            tools: what the model may call.
            sampling: how to draw tokens; `seed` is already this turn's own.
            previous: the turn that `messages` continues, so that a token-level client extends its exact tokens
                instead of tokenising again what the model sampled.
        """
        ...

    async def close(self) -> None:
        """Lets go of connections. Closing twice is fine."""
        ...
