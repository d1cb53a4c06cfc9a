"""What knows a model's chat format: messages to tokens, sampled tokens to a message, and on to the next turn."""

from collections.abc import Sequence
from typing import Protocol

from envs.types import Message, ToolSchema


class Renderer(Protocol):
    """Knows one model's chat format.

    What a model sampled is never tokenised again: the prompt of the next turn is the last prompt, the sampled tokens,
    and the tokens of what was added since. That holds wherever `extend` answers; where the format itself would not show
    the model its own words again (most strip the reasoning of earlier turns), `extend` says so, the conversation is
    rendered anew, and training starts a new row there (the metric `row_splits`).
    """

    @property
    def vocab_size(self) -> int:
        """Ids are in `[0, vocab_size)`."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an assistant message."""
        ...

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """The tokens of a whole conversation, up to where the assistant begins to speak.

        Raises:
            ConfigError: when the format has no way to write it.
        """
        ...

    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
    ) -> list[int] | None:
        """The prompt of the next turn: starts with exactly `prompt_ids` and `completion_ids`.

        Args:
            prompt_ids: the prompt of the last turn.
            completion_ids: what was sampled then; it may have been cut off.
            messages: what was added since.
            tools: as they were given to `prompt`.

        Returns:
            None where the chat format would not show the model exactly what it sampled: render the conversation anew.
        """
        ...

    def answer(self, message: Message) -> list[int]:
        """The tokens a model would sample to say `message`, end token included.

        Raises:
            ConfigError: when the format has no way to say it.
        """
        ...

    def parse(self, ids: Sequence[int], *, prompt_ids: Sequence[int] = (), tools: Sequence[ToolSchema] = ()) -> Message:
        """The assistant message that sampled tokens spell; never fails, whatever was sampled.

        Args:
            ids: the sampled tokens.
            prompt_ids: what they were sampled after, where it is known: a prompt may have begun the message.
            tools: what the model could call, where it is known: their types tell the text "1" from the number.
        """
        ...

    def text(self, ids: Sequence[int]) -> str:
        """What tokens spell, special ones by their names; half a character is U+FFFD."""
        ...
