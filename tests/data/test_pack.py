from collections.abc import Sequence
from dataclasses import astuple, replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import Completion, ConfigError, Task, Trajectory, Turn
from envs.types import Routing
from rl.data import pack as packing
from rl.data.pack import Segment, pack, segments, spread
from rl.data.routing import choices, recorded
from rl.types import Batch

Masks = list[tuple[list[bool], bool]]
TASK = Task.ask("a", "?")


def turn(prompt: Sequence[int], sampled: Sequence[int], logprobs: Sequence[float] = ()) -> Turn:
    completion = Completion(
        message={"role": "assistant", "content": ""},
        finish_reason="stop",
        prompt_ids=tuple(prompt),
        completion_ids=tuple(sampled),
        logprobs=tuple(logprobs) or (-1.0,) * len(sampled),
    )
    return Turn((), completion, fresh=True)


def test_a_turn_that_continues_the_last_one_joins_it() -> None:
    turns = [turn([1, 2], [3, 4], [-0.5, -0.25]), turn([1, 2, 3, 4, 5], [6], [-2.0])]
    (segment,) = segments(Trajectory(TASK, turns=turns), 1.5)
    assert segment.tokens == [1, 2, 3, 4, 5, 6]
    assert segment.mask == [False, False, True, True, False, True]
    assert segment.logprobs == [0.0, 0.0, -0.5, -0.25, 0.0, -2.0]
    assert (segment.advantage, segment.rollout_tokens, segment.starts_rollout) == (1.5, 3, True)


def test_any_other_turn_begins_a_segment_and_the_rollout_counts_once() -> None:
    # The second prompt lost the 4; the third continues the second.
    turns = [turn([1, 2], [3, 4]), turn([1, 2, 3], [6]), turn([1, 2, 3, 6, 7], [8])]
    first, second = segments(Trajectory(TASK, turns=turns), -1.0)
    assert (first.tokens, second.tokens) == ([1, 2, 3, 4], [1, 2, 3, 6, 7, 8])
    assert second.mask == [False, False, False, True, False, True]
    assert [(s.advantage, s.rollout_tokens, s.starts_rollout) for s in (first, second)] == [
        (-1.0, 4, True),
        (-1.0, 4, False),
    ]
    assert pack([first, second], 8, 1).rollouts == 1


def test_a_rollout_without_turns_is_no_segment() -> None:
    assert segments(Trajectory(TASK), 1.0) == []


def test_a_turn_without_tokens_is_refused() -> None:
    silent = replace(turn([1], [2]), completion=Completion({"role": "assistant", "content": "4"}, "stop"))
    with pytest.raises(ConfigError, match="turn 1 of task 'a' has no tokens or log-probabilities to train on"):
        segments(Trajectory(TASK, turns=[turn([1], [2]), silent]), 0.0)


@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 3), max_size=3), st.lists(st.integers(0, 3), max_size=3)))
)
def test_every_sampled_token_is_trained_on_once(turns: list[tuple[bool, list[int], list[int]]]) -> None:
    recorded: list[Turn] = []
    for extends, added, sampled in turns:
        before = recorded[-1].completion if extends and recorded else None
        past = [*before.prompt_ids, *before.completion_ids] if before else []  # type: ignore[misc]
        recorded.append(turn([*past, *added], sampled, [-1.0 - len(recorded)] * len(sampled)))
    parts = segments(Trajectory(TASK, turns=recorded), 0.0)
    trained = [(t, p) for s in parts for t, m, p in zip(s.tokens, s.mask, s.logprobs, strict=True) if m]
    expected = [
        (t, p) for r in recorded for t, p in zip(r.completion.completion_ids, r.completion.logprobs, strict=True)
    ]  # type: ignore[arg-type]
    assert trained == expected
    assert {s.rollout_tokens for s in parts} <= {len(expected)}
    assert [s.starts_rollout for s in parts] == [True, *[False] * (len(parts) - 1)][: len(parts)]


def test_rows_by_hand() -> None:
    parts = [
        Segment([1, 2], [False, True], [0.0, -0.5], 1.0, 1),
        Segment([3, 4, 5], [False, True, True], [0.0, -1.0, -1.5], -2.0, 2),
        Segment([6, 7, 8, 9], [False, False, False, True], [0.0, 0.0, 0.0, -3.0], 0.5, 1),
    ]
    batch = pack(parts, row_length=6, rows_multiple=1)
    np.testing.assert_array_equal(batch.tokens, [[6, 7, 8, 9, 1, 2], [3, 4, 5, 0, 0, 0]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]])
    np.testing.assert_array_equal(batch.segment_ids, [[1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(batch.mask, [[0, 0, 0, 1, 0, 1], [0, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(batch.behaviour_logprobs, [[0, 0, 0, -3, 0, -0.5], [0, -1, -1.5, 0, 0, 0]])
    np.testing.assert_array_equal(batch.advantages, [[0.5, 0.5, 0.5, 0.5, 1, 1], [-2, -2, -2, 0, 0, 0]])
    np.testing.assert_array_equal(batch.rollout_tokens, [[1, 1, 1, 1, 1, 1], [2, 2, 2, 0, 0, 0]])
    np.testing.assert_array_equal(batch.reference_logprobs, np.zeros((2, 6)))
    assert batch.rollouts == 3
    found = [str(a.dtype) for a in jax.tree.leaves(batch)]
    assert found == ["int32"] * 3 + ["bool"] + ["float32"] * 3 + ["int32"] * 2 + ["bool", "float32", "float32", "int32"]


@pytest.mark.parametrize(
    ("full", "multiple", "least", "rows"),
    [(1, 1, 0, 1), (3, 1, 0, 4), (3, 3, 0, 3), (4, 3, 0, 6), (1, 2, 5, 8), (0, 4, 0, 4)],
)
def test_the_number_of_rows_takes_few_values(full: int, multiple: int, least: int, rows: int) -> None:
    batch = pack([Segment([1, 1], [False, True], [0.0, -1.0], 0.0, 1)] * full, 2, multiple, least)
    assert batch.tokens.shape == (rows, 2)
    assert (batch.segment_ids > 0).all(axis=1).tolist() == [True] * full + [False] * (rows - full)
    assert batch.rollouts == full


def test_a_sequence_longer_than_a_row_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"a sequence has 33 tokens, but pack\.row_length is 32; set pack\.row_length=64"
    ):
        pack([Segment([1] * 33, [True] * 33, [0.0] * 33)], 32, 1)


MASKS = st.lists(st.tuples(st.lists(st.booleans(), min_size=1, max_size=12), st.booleans()), max_size=30)
"""For each segment its mask, and whether it starts a rollout."""


def parts_of(masks: Masks) -> list[Segment]:
    """Every token is a different one, so that it can be followed."""
    return [
        Segment([1000 * n + i for i in range(len(mask))], mask, [-0.5 * m for m in mask], float(n), sum(mask), starts)
        for n, (mask, starts) in enumerate(masks)
    ]


@given(MASKS, st.integers(12, 40), st.integers(1, 5), st.integers(0, 9))
def test_packing_keeps_every_token_once_and_in_order(masks: Masks, length: int, multiple: int, least: int) -> None:
    parts = parts_of(masks)
    batch = pack(parts, length, multiple, least)
    found = list(unpack(batch))
    expected = [replace(p, starts_rollout=True) for p in parts]
    assert sorted(found, key=astuple) == sorted(expected, key=astuple)
    used = (batch.segment_ids > 0).sum(axis=1)
    assert used.sum() == sum(len(p.tokens) for p in parts)
    assert (np.diff((used > 0).astype(int)) <= 0).all(), "filled rows come first"
    assert batch.rollouts == sum(p.starts_rollout and p.rollout_tokens > 0 for p in parts)
    factor = batch.tokens.shape[0] // multiple
    assert factor * multiple == batch.tokens.shape[0] >= least and factor & (factor - 1) == 0
    jax.tree.map(np.testing.assert_array_equal, batch, pack(parts, length, multiple, least))


@given(MASKS, st.integers(12, 40))
def test_a_row_is_begun_only_when_no_other_has_room(masks: Masks, length: int) -> None:
    batch = pack(parts_of(masks), length, 1)
    room = length - (batch.segment_ids > 0).sum(axis=1)
    firsts = (batch.segment_ids == 1).sum(axis=1)
    filled = int((firsts > 0).sum())
    for row in range(1, filled):
        assert (room[:row] < firsts[row]).all()


def unpack(batch: Batch) -> list[Segment]:
    """The segments of a batch; checks that each is one run of tokens and that nothing is written between them."""
    parts = []
    for r, ids in enumerate(batch.segment_ids):
        end = 0
        for number in range(1, ids.max() + 1):
            where = np.flatnonzero(ids == number)
            assert where.tolist() == list(range(end, end + len(where))) and len(where)
            end += len(where)
            assert batch.positions[r, where].tolist() == list(range(len(where)))
            (advantage,), (tokens,) = (
                set(batch.advantages[r, where].tolist()),
                set(batch.rollout_tokens[r, where].tolist()),
            )
            columns = (
                batch.tokens[r, where].tolist(),
                batch.mask[r, where].tolist(),
                batch.behaviour_logprobs[r, where].tolist(),
            )
            parts.append(Segment(*columns, advantage, tokens))
        for values in (a for a in jax.tree.leaves(batch) if a.ndim == 2):
            assert not np.asarray(values)[r, end:].any(), "padding is zeros"
    return parts


def test_what_is_said_about_packed_tokens_comes_back_by_segment() -> None:
    sizes = [4, 9, 3, 7]
    parts = [
        Segment(list(range(10 * i, 10 * i + n)), [t % 2 == 1 for t in range(n)], [0.0] * n) for i, n in enumerate(sizes)
    ]
    found = packing.unpack(parts, 12, np.asarray(pack(parts, 12, 2).tokens))
    assert [each.tolist() for each in found] == [[1, 3], [11, 13, 15, 17], [21], [31, 33, 35]]
    assert spread(parts[:1], [0.5, 2.0]) == [[0.0, 0.5, 0.0, 2.0]]


def routed(turn: Turn, first: int, numbers: Sequence[int]) -> Turn:
    """The turn with a layer of one expert per token."""
    return replace(
        turn, completion=replace(turn.completion, routing=Routing(first, (len(numbers), 1, 1), bytes(numbers)))
    )


def test_experts_are_those_that_were_said_first() -> None:
    turns = [
        routed(turn([1, 2], [3, 4]), 0, [10, 20, 30]),
        routed(turn([1, 2, 3, 4, 5], [6, 7]), 0, [11, 21, 31, 41, 51, 200]),  # read everything anew
        routed(turn([1, 2, 3, 4, 5, 6, 7, 8], [9]), 6, [70, 80]),  # tells what is new
        turn([1], [2]),
    ]
    trajectory = Trajectory(TASK, turns=turns)
    first, second = segments(trajectory, routing=True)
    assert first.experts is not None and second.experts is None
    assert first.experts[:, 0, 0].tolist() == [10, 20, 30, 41, 51, 200, 70, 80, -1]
    batch = pack([first, second], 12, 1)
    assert batch.experts is not None and batch.experts.shape == (1, 12, 1, 1) and batch.experts.dtype == np.int16
    assert batch.experts[0, :, 0, 0].tolist() == [10, 20, 30, 41, 51, 200, 70, 80, -1, -1, -1, -1]

    assert all(part.experts is None for part in segments(trajectory)), "only where they are to be replayed"
    (gap,) = segments(Trajectory(TASK, turns=[turns[0], turns[2]]), routing=True)
    assert gap.experts is not None and gap.experts[:, 0, 0].tolist() == [10, 20, 30, -1, -1, -1, 70, 80, -1]


def test_a_routing_is_a_byte_or_two_for_each_expert() -> None:
    few, many = recorded(np.array([[[7, 255]]], np.uint8), 3), recorded(np.array([[[7, 258]]], np.uint16))
    assert (few, many) == (Routing(3, (1, 1, 2), b"\x07\xff"), Routing(0, (1, 1, 2), b"\x07\x00\x02\x01"))
    assert [choices(each).tolist() for each in (few, many)] == [[[[7, 255]]], [[[7, 258]]]]
    assert Routing.from_dict(few.to_dict()) == few
    three = recorded(np.arange(6, dtype=np.uint8).reshape(3, 1, 2), 4)
    assert three.since(2) == three and three.since(5) == Routing(5, (2, 1, 2), b"\x02\x03\x04\x05")
    assert three.since(9) == Routing(7, (0, 1, 2), b"") and choices(three.since(9)).shape == (0, 1, 2)
    with pytest.raises(ValueError, match=r"a routing of shape \(1, 1, 2\) has 3 bytes; expected 1 or 2 each"):
        choices(Routing(0, (1, 1, 2), b"abc"))
