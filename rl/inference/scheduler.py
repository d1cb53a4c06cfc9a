"""Which request goes into which slot, and what is read next. Plain Python: the compiled programs carry out its plans.

A slot keeps the tokens it has read and drawn after its request has ended. The next request goes where most of its
beginning lies already, so that the turns of one rollout read only what is new; a beginning that lies in another slot
(of a group on one prompt, of a system prompt) is copied instead of read.
"""

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from rl.inference.requests import Request

if TYPE_CHECKING:
    Tokens = array[int]
else:  # arrays take no type arguments when they run
    Tokens = array

LEAST_SHARED = 16
"""A shorter common beginning is not worth looking after: reading so few tokens costs no more than copying."""

SHORTEST_READ = 16
"""Chunks are padded to this times a power of two."""

STEPS_AT_ONCE = 8
"""Reads in a row before the first tokens are drawn, while nothing else is being drawn."""

STEPS_BETWEEN = 2
"""Reads in a row while others wait for their next tokens."""


class Copy(NamedTuple):
    """The first `length` tokens of one slot are also another's."""

    source: int
    target: int
    length: int


class Read(NamedTuple):
    """A piece of a prompt for a slot, from token `start` on."""

    slot: int
    start: int
    tokens: tuple[int, ...]


class Reads(NamedTuple):
    """Pieces that are read together, `rows` of `length` tokens (padded); none ends beyond token `extent`."""

    rows: int
    length: int
    extent: int
    pieces: list[Read]


@dataclass(slots=True, eq=False)
class Slot:
    """Attributes:
    number: its row in the cache.
    kept: the tokens that its part of the cache holds.
    request: what it works for.
    target: tokens to be kept before it can draw: all of the request's but the newest.
    source: the slot from which the first `shared` tokens are to be copied, once they were read there.
    drawing: whether everything was read.
    stale: what it keeps was computed with other weights than there are now, in part.
    fresh: it is the target of a copy that was not made yet.
    used: when it was last occupied.
    """

    number: int
    kept: Tokens = field(default_factory=lambda: array("i"))
    request: Request | None = None
    target: Tokens = field(default_factory=lambda: array("i"))
    source: "Slot | None" = None
    shared: int = 0
    drawing: bool = False
    stale: bool = False
    fresh: bool = False
    used: int = 0

    @property
    def coming(self) -> Tokens:
        """What it keeps, or will keep when its prompt was read."""
        return self.kept if self.request is None or self.drawing else self.target


class Scheduler:
    """The slots of one lane.

    Args:
        slots: how many.
        chunk: the most tokens of a prompt that are read at once, and about how many are read together.
        columns: tokens the cache has room for, per slot.
        exact: what a request computes must not depend on what came before it: beginnings are shared between equal
            prompts only, because the rest of a prompt read on its own has other last bits than the whole prompt.
    """

    def __init__(self, slots: int, *, chunk: int, columns: int, exact: bool) -> None:
        self.slots = [Slot(i) for i in range(slots)]
        self._chunk = min(chunk, columns)
        self._together = chunk
        self._columns = columns
        self._exact = exact
        self._copies: list[Copy] = []
        self._clock = 0

    @property
    def free(self) -> int:
        """Slots without a request."""
        return sum(slot.request is None for slot in self.slots)

    @property
    def running(self) -> list[Slot]:
        """Slots with a request."""
        return [slot for slot in self.slots if slot.request is not None]

    def shares(self, past: Tokens) -> int:
        """How many of these tokens lie in a slot, or will."""
        return max(self._shared(slot, past) for slot in self.slots)

    def place(self, request: Request) -> None:
        """Gives a request a slot; there must be a free one."""
        past = array("i", request.tokens[:-1])
        free = [slot for slot in self.slots if slot.request is None]
        best = max(self.slots, key=lambda slot: (self._shared(slot, past), slot.request is None, -slot.number))
        shared = self._shared(best, past)
        self._clock += 1
        if best.request is None and shared and 2 * shared >= len(best.kept):
            slot = best
            del slot.kept[shared:]
        else:
            others = [slot for slot in free if slot is not best or not shared] or free
            slot = min(others, key=lambda slot: (bool(slot.kept), slot.used, slot.number))
            slot.kept, slot.stale = array("i"), False
            if shared and slot is not best:
                self._share(best, slot, past, shared)
            elif shared:
                slot.kept = past[:shared]
        slot.request, slot.target, slot.drawing, slot.used = request, past, False, self._clock
        if not request.ids:
            request.cached_tokens = shared

    def plan(self) -> tuple[list[list[Copy] | Reads], list[Slot]]:
        """What to do before the next draw, in order, and the slots that draw from then on for the first time.

        The plan counts as carried out.
        """
        steps: list[list[Copy] | Reads] = []
        left = STEPS_BETWEEN if any(slot.drawing for slot in self.slots) else STEPS_AT_ONCE
        if self._copies:
            steps.append(self._copies)
        self._copies = []
        for slot in self.slots:
            slot.fresh = False
        while True:
            if copies := self._followers():
                steps.append(copies)
            reads = self._next_reads() if left else None
            if reads is None:
                break
            steps.append(reads)
            left -= 1
        ready = [slot for slot in self.running if not slot.drawing and len(slot.kept) == len(slot.target)]
        for slot in ready:
            slot.drawing = True
        return steps, ready

    def drew(self, slot: Slot) -> None:
        """All tokens of the slot's request but the newest are in the cache now."""
        request = slot.request
        assert request is not None
        slot.kept.extend(request.prompt[len(slot.kept) :])
        slot.kept.extend(request.ids[len(slot.kept) - len(request.prompt) : -1])

    def release(self, slot: Slot) -> None:
        """The slot's request is over, or goes back to the queue."""
        slot.request, slot.source, slot.drawing = None, None, False
        if slot.stale or slot.fresh:
            slot.kept, slot.stale, slot.fresh = array("i"), False, False
            self._copies = [copy for copy in self._copies if copy.target != slot.number]

    def forget(self) -> None:
        """What is kept must not be shared any more: there are other weights."""
        self._copies = []
        for slot in self.slots:
            slot.source = None
            if slot.fresh:
                slot.kept, slot.fresh = array("i"), False
            if slot.request is None:
                slot.kept = array("i")
            else:
                slot.stale = True

    def cut(self, columns: int) -> None:
        """The cache has so many columns now."""
        self._columns = columns
        for slot in self.slots:
            if slot.request is None:
                del slot.kept[columns - 1 :]

    def _shared(self, slot: Slot, past: Tokens) -> int:
        if slot.stale:
            return 0
        if self._exact:
            same = slot.target == past and len(slot.coming) >= len(past)
            return len(past) if same else 0
        length = common(slot.coming, past)
        return length if length >= LEAST_SHARED else 0

    def _share(self, source: Slot, slot: Slot, past: Tokens, shared: int) -> None:
        if len(source.kept) >= shared and not source.fresh:
            self._copies.append(Copy(source.number, slot.number, shared))
            slot.kept, slot.fresh = past[:shared], True
        else:
            slot.source, slot.shared = source, shared

    def _followers(self) -> list[Copy]:
        """Copies of what has been read meanwhile."""
        copies, done = [], []
        for slot in self.slots:
            source = slot.source
            if source is None:
                continue
            if source.stale or common(source.coming, slot.target) < slot.shared:
                slot.source = None  # it goes another way: nothing is to be had from there
            elif len(source.kept) >= slot.shared:
                copies.append(Copy(source.number, slot.number, slot.shared))
                done.append(slot)
        for slot in done:
            slot.kept, slot.source = slot.target[: slot.shared], None
        return copies

    def _next_reads(self) -> Reads | None:
        """The piece that has waited longest, with others of its shape."""
        unread = [s for s in self.running if s.source is None and len(s.kept) < len(s.target)]
        if not unread:
            return None
        unread.sort(key=lambda slot: slot.used)
        shape = self._shape(unread[0])
        alike = [slot for slot in unread if self._shape(slot) == shape]
        length, extent = shape
        rows = max(1, min(len(self.slots), self._together // length))
        if not self._exact and (len(alike) == 1 or 4 * len(alike) <= rows):
            rows = 1
        pieces = []
        for slot in alike[:rows]:
            start = min(len(slot.kept), self._columns - length)  # so that the padded piece ends within the cache
            piece = slot.target[start : min(len(slot.kept) + length, len(slot.target), start + length)]
            pieces.append(Read(slot.number, start, tuple(piece)))
            slot.kept = slot.target[: start + len(piece)]
        return Reads(rows, length, extent, pieces)

    def _shape(self, slot: Slot) -> tuple[int, int]:
        """Length and extent of the slot's next piece, both bucketed."""
        start = len(slot.kept)
        length = min(bucket(len(slot.target) - start), bucket(self._chunk), self._columns)
        return length, min(bucket(start + length), self._columns)


def bucket(length: int) -> int:
    """The least power of two times `SHORTEST_READ` that is not below `length`."""
    size = SHORTEST_READ
    while size < length:
        size *= 2
    return size


def common(a: Tokens, b: Tokens) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(a), len(b))
    if not high or a[0] != b[0]:
        return 0
    if a[:LEAST_SHARED] != b[:LEAST_SHARED]:  # most have nothing in common
        high = min(high, LEAST_SHARED)
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
