"""Text of tokens that arrive a few at a time."""

from collections.abc import Sequence

from envs.render.base import Renderer

_HALF = "\ufffd"


class TextStream:
    """Turns tokens into text as they arrive, whole characters only.

    A character may be several tokens; what is not whole yet is kept until it is. Some tokenizers drop a blank in front
    of the first token: each piece is read behind the one before it, never alone.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._ids: list[int] = []
        self._context = 0  # where the last piece begins
        self._told = 0  # where the next one begins

    def add(self, ids: Sequence[int]) -> str:
        """The text that these tokens complete."""
        self._ids.extend(ids)
        text = self._behind_the_last()
        if text.endswith(_HALF):
            return ""
        self._context, self._told = self._told, len(self._ids)
        return text

    def end(self) -> str:
        """The rest: what no further token came to complete."""
        return self._behind_the_last()

    def _behind_the_last(self) -> str:
        known = self._renderer.text(self._ids[self._context : self._told])
        return self._renderer.text(self._ids[self._context :])[len(known) :]
