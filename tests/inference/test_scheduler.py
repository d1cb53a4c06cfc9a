"""Plans by hand, and plans carried out by a cache of lists: what a slot ends up with is always its own tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.inference.engine import TokenSampling
from rl.inference.requests import Request, first_stop
from rl.inference.scheduler import Copy, Read, Reads, Scheduler, Slot, bucket, common


def request(prompt: list[int], limit: int = 100) -> Request:
    return Request("r", tuple(prompt), TokenSampling(max_tokens=limit), limit, lambda: None)


def draw(scheduler: Scheduler, slot: Slot, *ids: int) -> None:
    """Has a slot's request get tokens."""
    assert slot.request is not None and slot.drawing
    slot.request.take(ids, [0.0] * len(ids), [0.0] * len(ids), 0, None)
    scheduler.drew(slot)


def end(scheduler: Scheduler, slot: Slot) -> None:
    assert slot.request is not None
    slot.request.end("abort")
    scheduler.release(slot)


LONG = list(range(100, 140))


def test_the_next_turn_reads_only_what_is_new() -> None:
    scheduler = Scheduler(2, chunk=64, columns=128, exact=False)
    scheduler.place(request(LONG))
    steps, (slot,) = scheduler.plan()
    assert steps == [Reads(1, 64, 64, [Read(0, 0, tuple(LONG[:39]))])]
    draw(scheduler, slot, 1, 2, 3)
    end(scheduler, slot)
    assert list(slot.kept) == [*LONG, 1, 2]
    again = request([*LONG, 1, 2, 3, 50, 51])
    scheduler.place(again)
    steps, (slot,) = scheduler.plan()
    assert steps == [Reads(1, 16, 64, [Read(0, 42, (3, 50))])] and again.cached_tokens == 42
    # Another conversation takes the other slot; a third one the slot that was used least recently.
    scheduler.place(request([7] * 20))
    _, (other,) = scheduler.plan()
    end(scheduler, slot)
    end(scheduler, other)
    scheduler.place(request([8] * 20))
    assert scheduler.running == [slot] and list(other.kept) == [7] * 19


def test_how_many_tokens_are_read_together_does_not_depend_on_the_length_of_the_cache() -> None:
    scheduler = Scheduler(8, chunk=256, columns=32, exact=False)
    for i in range(8):
        scheduler.place(request([i] * 33))
    (reads,), ready = scheduler.plan()
    assert isinstance(reads, Reads) and (reads.rows, reads.length, len(ready)) == (8, 32, 8)


def test_a_group_is_read_once_and_copied() -> None:
    scheduler = Scheduler(4, chunk=64, columns=128, exact=True)
    for _ in range(3):
        scheduler.place(request([1, 2, 3]))
    steps, ready = scheduler.plan()
    assert steps == [Reads(4, 16, 16, [Read(0, 0, (1, 2))]), [Copy(0, 1, 2), Copy(0, 2, 2)]]
    assert [list(slot.kept) for slot in ready] == [[1, 2]] * 3
    draw(scheduler, ready[0], 9)
    scheduler.place(request([1, 2, 4]))
    assert scheduler.plan()[0] == [[Copy(0, 3, 2)]], "from one that draws already"


def test_a_common_beginning_is_copied_and_the_rest_read() -> None:
    scheduler = Scheduler(3, chunk=64, columns=128, exact=False)
    scheduler.place(request([*LONG, 1, 1, 1]))
    scheduler.place(request([*LONG, 2, 2, 2]))
    steps, ready = scheduler.plan()
    first = Reads(1, 64, 64, [Read(0, 0, (*LONG, 1, 1))])
    assert steps == [first, [Copy(0, 1, 40)], Reads(1, 16, 64, [Read(1, 40, (2, 2))])]
    # A slot that keeps more than twice of what is shared is copied from, not taken over.
    draw(scheduler, ready[0], *range(90))
    end(scheduler, ready[0])
    scheduler.place(request([*LONG, 3, 3]))
    assert scheduler.plan()[0] == [[Copy(0, 2, 40)], Reads(1, 16, 64, [Read(2, 40, (3,))])]
    # When exact, beginnings are shared by equal prompts only.
    exact = Scheduler(3, chunk=64, columns=128, exact=True)
    exact.place(request([*LONG, 1, 1, 1]))
    exact.place(request([*LONG, 2, 2, 2]))
    assert [type(step) for step in exact.plan()[0]] == [Reads, Reads]


def test_long_prompts_are_read_in_pieces_between_which_others_draw() -> None:
    scheduler = Scheduler(4, chunk=16, columns=200, exact=False)
    scheduler.place(request([1, 2]))
    _, (short,) = scheduler.plan()
    long = [i % 50 + 3 for i in range(101)]
    scheduler.place(request(long))
    starts = []
    for _ in range(3):
        steps, ready = scheduler.plan()
        assert ready == []
        starts += [piece.start for step in steps if isinstance(step, Reads) for piece in step.pieces]
        draw(scheduler, short, 5)
    assert starts == [0, 16, 32, 48, 64, 80]
    steps, (slot,) = scheduler.plan()
    assert steps == [Reads(1, 16, 128, [Read(slot.number, 96, tuple(long[96:100]))])]


def test_a_piece_whose_padding_would_not_fit_begins_earlier() -> None:
    scheduler = Scheduler(1, chunk=64, columns=80, exact=False)
    scheduler.place(request(list(range(78))))
    steps, _ = scheduler.plan()
    assert steps == [
        Reads(1, 64, 64, [Read(0, 0, tuple(range(64)))]),
        Reads(1, 16, 80, [Read(0, 64, tuple(range(64, 77)))]),
    ]
    scheduler.release(scheduler.slots[0])
    scheduler.place(request(list(range(79))))
    assert scheduler.plan()[0] == [Reads(1, 16, 80, [Read(0, 64, tuple(range(64, 78)))])]


def test_other_weights_share_nothing() -> None:
    scheduler = Scheduler(3, chunk=64, columns=128, exact=False)
    scheduler.place(request(LONG))
    _, (running,) = scheduler.plan()
    scheduler.place(request([*LONG, 1]))
    scheduler.forget()
    scheduler.place(request([*LONG, 2]))
    steps, _ = scheduler.plan()
    assert [type(step) for step in steps] == [Reads, Reads], "neither copies what the first one has read before"
    assert {piece.start for step in steps if isinstance(step, Reads) for piece in step.pieces} == {0}
    end(scheduler, running)
    assert list(running.kept) == []


def test_buckets_and_beginnings() -> None:
    assert [bucket(n) for n in (0, 16, 17, 33, 300)] == [16, 16, 32, 64, 512]
    from array import array

    a = array("i", range(50))
    for n in (0, 1, 15, 16, 17, 49, 50):
        assert common(a, array("i", [*range(n), 99, 99])) == n


@pytest.mark.parametrize(
    ("start", "stops", "expected"),
    [
        (0, ("b",), (2, "b")),
        (0, ("zz", "bc"), (3, "bc")),
        (2, ("b",), None),
        (2, ("bc",), (3, "bc")),
        (0, ("x",), None),
    ],
)
def test_stop_texts(start: int, stops: tuple[str, ...], expected: tuple[int, str] | None) -> None:
    assert first_stop([97, 98, 99, 100], start, stops, lambda ids: bytes(ids).decode("utf-8", "replace")) == expected


def test_a_stop_text_in_several_tokens_per_character() -> None:
    ids = list("a…!".encode())
    text_of = lambda ids: bytes(ids).decode("utf-8", "replace")  # noqa: E731
    assert first_stop(ids, 0, ("…",), text_of) == (4, "…")
    assert first_stop(ids, 3, ("…",), text_of) == (4, "…"), "when all but its last byte were known"
    assert first_stop(ids, 4, ("…",), text_of) is None


class Lists:
    """Carries plans out on lists of tokens, as the compiled programs do on arrays."""

    def __init__(self, slots: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(slots)]

    def __call__(self, steps: list[list[Copy] | Reads]) -> None:
        for step in steps:
            if isinstance(step, Reads):
                assert len(step.pieces) <= step.rows
                for piece in step.pieces:
                    assert len(piece.tokens) <= step.length and piece.start + len(piece.tokens) <= step.extent
                    assert piece.start <= len(self.rows[piece.slot])
                    self.rows[piece.slot][piece.start :] = piece.tokens
            else:
                for copy in step:
                    assert len(self.rows[copy.source]) >= copy.length
                    self.rows[copy.target] = self.rows[copy.source][: copy.length]


prompts = st.tuples(st.integers(0, 2), st.integers(0, 45), st.lists(st.integers(50, 51), min_size=1, max_size=4)).map(
    lambda p: [*([p[0]] * p[1]), *p[2]]
)
actions = st.one_of(
    st.tuples(st.just("place"), prompts),
    st.tuples(st.just("dispatch"), st.integers(1, 9)),
    st.tuples(st.sampled_from(["end", "retract"]), st.integers(0, 3)),
    st.tuples(st.just("forget"), st.just(0)),
)


@given(st.booleans(), st.lists(actions, max_size=40))
def test_whatever_happens_every_slot_has_its_own_tokens(exact: bool, doings: list) -> None:
    scheduler, lists = Scheduler(4, chunk=16, columns=96, exact=exact), Lists(4)
    for what, value in [*doings, *[("dispatch", 1)] * 9]:
        if what == "place" and scheduler.free:
            scheduler.place(request(value, limit=96 - len(value)))
        elif what in ("end", "retract") and scheduler.running:
            slot = scheduler.running[value % len(scheduler.running)]
            slot.stale |= what == "retract"
            again = slot.request
            scheduler.release(slot)
            if what == "retract" and again is not None:
                scheduler.place(again)
        elif what == "forget":
            scheduler.forget()
        elif what == "dispatch":
            steps, _ = scheduler.plan()
            lists(steps)
            for slot in scheduler.running:
                assert slot.request is not None
                if not slot.drawing:
                    lists.rows[slot.number][len(slot.kept) :] = [-1]  # an idle slot writes there
                    continue
                assert lists.rows[slot.number][: len(slot.kept)] == list(slot.request.tokens[:-1]) == list(slot.kept)
                drawn = list(range(60, 60 + min(value, slot.request.limit - len(slot.request.ids))))
                lists.rows[slot.number][len(slot.kept) :] = [slot.request.tokens[-1], *drawn[:-1]]
                draw(scheduler, slot, *drawn)
                if slot.request.over:
                    scheduler.release(slot)
        for slot in scheduler.slots:
            if slot.request is None and not slot.fresh:
                assert lists.rows[slot.number][: len(slot.kept)] == list(slot.kept)
    assert all(slot.drawing for slot in scheduler.running), "nobody waits for ever"
