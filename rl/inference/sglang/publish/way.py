"""What every way of giving weights to SGLang servers has in common."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from rl.inference.engine import EngineError
from rl.inference.label import Label
from rl.models.base import Model, Params
from rl.models.family import Family
from rl.weights.save import Tensor, stored

Failures = Mapping[str, EngineError]
"""URL of a server -> why it did not take the weights."""


class Exporter(NamedTuple):
    """How parameters become the tensors that a server knows.

    Attributes:
        family: names them as Hugging Face does; SGLang's own loaders fuse and split them from there.
        model: whose parameters they are.
        dtype: what they are converted to: that of the server's weights, "float32" or "bfloat16".
    """

    family: Family
    model: Model
    dtype: str

    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the layers."""
        return stored(self.family, self.model, lambda name: self.dtype)

    def names(self) -> list[str]:
        return [tensor.name for tensor in self.tensors()]


S = TypeVar("S")


class Way(Protocol[S]):
    """A way of giving weights to servers. `S` is what it keeps of one publication: where the weights lie."""

    async def prepare(self, params: Params, version: int) -> S:
        """Makes the weights ready on this side; the servers go on sampling."""
        ...

    async def transfer(self, snapshot: S, urls: Sequence[str]) -> None:
        """Does, and checks, whatever can be while the servers still sample.

        Raises:
            UpswingError: when the servers should not be given these weights.
        """
        ...

    async def commit(self, snapshot: S, urls: Sequence[str], label: Label, *, flush: bool) -> Failures:
        """Has the servers, which are paused, sample with the weights, and their tokens carry the label.

        May be called again: for servers that were started anew, and to go back.

        Args:
            snapshot: what `prepare` gave.
            urls: of the servers.
            label: what they are to call the weights.
            flush: have them forget the keys and values they have of older weights.

        Returns:
            The servers that failed; they may have some of the weights and not others.
        """
        ...

    def adopt(self, snapshot: S) -> None:
        """It is the newest version now: whatever is asked of servers from here on is to be drawn with it."""
        ...

    async def forget(self, url: str) -> None:
        """A server was started anew: whatever was arranged with it before is gone."""
        ...

    async def discard(self, snapshot: S) -> None:
        """Removes what `prepare` made."""
        ...

    def bytes(self, snapshot: S) -> int:
        """How many bytes of weights a snapshot holds."""
        ...

    async def close(self) -> None: ...
