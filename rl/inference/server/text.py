"""Completions as text."""

import re
from collections.abc import Sequence

from rl.inference.engine import Generation

_CALL = "<tool_call>"
"""What begins a call in most chat formats."""

_TAG_BEGUN = re.compile(r"<(?:\|[^|>]*|/?\w*)$")


class Unfolding:
    """A text that grows, given out as soon as it can no longer change.

    Held back are the bytes of a character that is not whole, what may turn out to begin a stop text, and what may turn
    out to begin a tag of the chat format. Where there are tools also what may be a call of one: what follows the tag,
    blanks that may stand before it, and a text that begins as JSON does, which is how Llama 3 calls.

    Args:
        stop: texts that end the completion.
        tools: whether it may call tools.
    """

    def __init__(self, stop: Sequence[str], *, tools: bool = False) -> None:
        self._stop, self._tools = stop, tools
        self._given = ""

    def update(self, text: str) -> str:
        """What can be given out of the text so far that was not before."""
        end = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        if begun := _TAG_BEGUN.search(text):
            end = min(end, begun.start())
        shown = text[:end].rstrip("\ufffd")
        if self._tools:
            shown = "" if text.lstrip().startswith("{") else shown.partition(_CALL)[0].rstrip()
        return self._give(shown)

    def finish(self, text: str) -> str:
        """The rest; `text` is the whole."""
        return self._give(text)

    def _give(self, text: str) -> str:
        # A chat format may see late that what it took for text was something else. What is said is said.
        if not text.startswith(self._given):
            return ""
        fresh, self._given = text[len(self._given) :], text
        return fresh


def said_ids(generation: Generation) -> list[int]:
    """The tokens of a completion without the end token that ended it."""
    return generation.ids[:-1] if isinstance(generation.stopped_by, int) else generation.ids


def without_stop(text: str, stopped_by: int | str | None) -> str:
    """A completion's text up to the stop text that ended it."""
    if isinstance(stopped_by, str) and (end := text.rfind(stopped_by)) >= 0:
        return text[:end]
    return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin (or are) `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
