"""Which adapter requests are drawn with, and which ones are still in use. Servers know adapters by name alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Adapter:
    """An adapter that servers have.

    Attributes:
        name: what a request calls it (`lora_path`); no other one has the same.
        version: of the policy it makes of the frozen weights.
        users: requests under way that are drawn with it.
    """

    name: str
    version: int
    users: int = 0


class Adapters:
    """What the publisher brings, the engine names.

    Args:
        keep: requests under way go on with the adapter they began with. Otherwise they are ended when there is a newer
            one, and what is left of them is drawn by others, with that one.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self.keep = keep
        self.newest: Adapter | None = None

    def relabel(self, version: int) -> None:
        """The newest adapter makes another version, too; requests under way have the one they began with."""
        if self.newest is not None:
            self.newest.version = version

    @contextmanager
    def use(self) -> Iterator[Adapter]:
        """The newest adapter, for one request; it stays on the servers until that is over."""
        adapter = self.newest
        if adapter is None:
            raise RuntimeError("nothing was published yet")
        adapter.users += 1
        try:
            yield adapter
        finally:
            adapter.users -= 1
