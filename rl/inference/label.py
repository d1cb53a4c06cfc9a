"""What a server calls its weights: their version, and whose they are."""

from typing import NamedTuple


class Label(NamedTuple):
    """`7@OWNER`, or only `7` where it does not matter whose. To a server it is a text that every token carries.

    Two trainers count alike, so the version alone does not tell whose weights drew a token.

    Attributes:
        version: of the policy.
        owner: the run that publishes them; empty: none.
    """

    version: int
    owner: str = ""

    def __str__(self) -> str:
        return f"{self.version}@{self.owner}" if self.owner else str(self.version)


def read_label(text: str) -> Label | None:
    """The label that a text is; None for any other words, such as the "default" of a server that was just started."""
    number, _, owner = text.partition("@")
    return Label(int(number), owner) if number.isascii() and number.isdigit() else None
