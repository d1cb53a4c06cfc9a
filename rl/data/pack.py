"""The single crossing from trajectories to arrays: turns become segments, segments become rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from envs.errors import ConfigError
from envs.types import Routing, Trajectory
from rl.data.routing import choices
from rl.types import Batch


@dataclass(slots=True)
class Segment:
    """One sequence of tokens that share a past. Lists have one entry per token.

    Attributes:
        tokens: prompt and sampled tokens, in order.
        mask: which of them the policy sampled (or, for demonstrations, should have written).
        logprobs: log-probability when sampled; 0 elsewhere.
        advantage: credit of the rollout, or of each token.
        rollout_tokens: trainable tokens of the whole rollout.
        starts_rollout: it is the first of its rollout.
        versions: the policy version each token was sampled with; empty if no policy sampled them.
        values: what the critic said before each token; empty if there is none.
        returns: what it should have said.
        pair: number of the pair it belongs to, from 1, negative if it is the worse answer; 0: to none.
        components: its weight in each component of the loss; all segments of a batch name the same ones, or none.
        taught: what a teacher reads in its place: another prompt, and from the first sampled token on the same.
        experts: `[tokens, layers, k]` that the sampler sent each token through, -1 where that is not known; None: of no
            token.
    """

    tokens: list[int]
    mask: list[bool]
    logprobs: list[float]
    advantage: float | list[float] = 0.0
    rollout_tokens: int = 0
    starts_rollout: bool = True
    versions: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    pair: int = 0
    components: Mapping[str, float] = field(default_factory=dict)
    taught: list[int] = field(default_factory=list)
    experts: np.ndarray | None = None


def segments(trajectory: Trajectory, advantage: float = 0.0, *, routing: bool = False) -> list[Segment]:
    """The token sequences of a rollout.

    A turn whose prompt begins with exactly the tokens of the turn before it, and what was sampled there, continues that
    segment; any other turn starts a new one.

    Args:
        trajectory: the rollout.
        advantage: of its tokens.
        routing: fill in `experts`, where they were recorded. What is said first of a token counts: it is how that token
            was sampled, and a later turn that read it anew may have sent it elsewhere.

    Raises:
        ConfigError: when a turn carries no tokens: it did not come from a token-level client.
    """
    result: list[Segment] = []
    for index, turn in enumerate(trajectory.turns):
        c = turn.completion
        if c.prompt_ids is None or c.completion_ids is None or c.logprobs is None:
            raise ConfigError(
                f"turn {index} of task '{trajectory.task.id}' has no tokens or log-probabilities to train on; "
                "training needs a client that records them (the engine's), and SGLang does not know those of truncated "
                "sampling (top_p, top_k, min_p)"
            )
        known = result[-1].tokens if result else []
        if not result or list(c.prompt_ids[: len(known)]) != known:
            result.append(Segment([], [], [], advantage, starts_rollout=not result))
            known = []
        segment, before = result[-1], len(known)
        new = list(c.prompt_ids[len(known) :])
        segment.tokens += [*new, *c.completion_ids]
        segment.mask += [False] * len(new) + [True] * len(c.completion_ids)
        segment.logprobs += [0.0] * len(new) + list(c.logprobs)
        segment.versions += [0] * len(new) + list(c.versions or [0] * len(c.completion_ids))
        if routing:
            segment.experts = _routed(segment.experts, c.routing, before, len(segment.tokens))
    total = sum(sum(segment.mask) for segment in result)
    for segment in result:
        segment.rollout_tokens = total
    return result


def spread(parts: Sequence[Segment], numbers: Sequence[float]) -> list[list[float]]:
    """One number for each token that a rollout sampled, laid over the tokens of its segments; 0 between them."""
    left = iter(numbers)
    return [[float(next(left)) if sampled else 0.0 for sampled in part.mask] for part in parts]


def row_splits(trajectory: Trajectory) -> int:
    """How many turns start a segment anew, beside the first: their prompt does not begin with the tokens before it."""
    splits = 0
    for before, after in pairwise(turn.completion for turn in trajectory.turns):
        known = [*(before.prompt_ids or ()), *(before.completion_ids or ())]
        splits += list((after.prompt_ids or ())[: len(known)]) != known
    return splits


def pack(parts: Sequence[Segment], row_length: int, rows_multiple: int, min_rows: int = 0) -> Batch:
    """Lays segments into rows of `row_length` tokens, longest first, each into the first row with room.

    The number of rows is `rows_multiple` times a power of two, and at least `min_rows`, so that few shapes ever occur;
    filled rows come first. The result depends only on the segments and their order.

    Raises:
        ConfigError: when a segment is longer than a row.
    """
    rows = _laid(parts, row_length)
    count = rows_multiple
    while count < max(len(rows), min_rows):
        count *= 2
    numbered = [[parts[i] for i in row] for row in rows]
    return _fill(numbered, count, row_length, rollouts=sum(s.starts_rollout and s.rollout_tokens > 0 for s in parts))


def unpack(parts: Sequence[Segment], row_length: int, packed: np.ndarray) -> list[np.ndarray]:
    """What `packed [R, L, …]` says about the sampled tokens of each segment, where `pack` laid them into rows."""
    found: dict[int, np.ndarray] = {}
    for r, row in enumerate(_laid(parts, row_length)):
        start = 0
        for i in row:
            end = start + len(parts[i].tokens)
            found[i] = packed[r, start:end][np.array(parts[i].mask, bool)]
            start = end
    return [found[i] for i in range(len(parts))]


def lay(parts: Sequence[Segment], row_length: int, rows: int, numbers: Sequence[np.ndarray]) -> np.ndarray:
    """`[rows, row_length, …]`: what is known of each segment's sampled tokens, where `pack` lays them; 0 between."""
    inner = numbers[0].shape[1:] if numbers else ()
    integers = bool(numbers) and np.issubdtype(numbers[0].dtype, np.integer)
    result = np.zeros((rows, row_length, *inner), np.int32 if integers else np.float32)
    for r, row in enumerate(_laid(parts, row_length)):
        start = 0
        for i in row:
            end = start + len(parts[i].tokens)
            result[r, start:end][np.array(parts[i].mask, bool)] = numbers[i]
            start = end
    return result


def taught(part: Segment) -> Segment:
    """The segment as its teacher reads it, with the same sampled tokens, which go through experts of its own choice; as
    it is, experts too, if that is nothing else: a policy then teaches itself nothing."""
    if not part.taught:
        return part
    ahead = len(part.taught) - (len(part.tokens) - part.mask.index(True))
    mask = [False] * ahead + part.mask[part.mask.index(True) :]
    return Segment(part.taught, mask, [0.0] * len(mask), rollout_tokens=part.rollout_tokens)


def _routed(before: np.ndarray | None, routing: Routing | None, known: int, size: int) -> np.ndarray | None:
    """The experts of a segment's first `size` tokens, of which `known` were there before this turn."""
    said = None if routing is None else choices(routing)
    like = before if before is not None else said
    if like is None:
        return None
    result = np.full((size, *like.shape[1:]), -1, np.int16)
    if before is not None:
        result[:known] = before
    if said is not None and routing is not None:
        start = max(routing.first, known - 1)  # the last token that was drawn had not been read yet
        result[start : routing.first + len(said)] = said[start - routing.first :]
    return result


def _laid(parts: Sequence[Segment], row_length: int) -> list[list[int]]:
    """Which segments lie in which row, by their numbers."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(parts)), key=lambda i: -len(parts[i].tokens)):
        size = len(parts[number].tokens)
        if size > row_length:
            raise ConfigError(
                f"a sequence has {size} tokens, but pack.row_length is {row_length}; "
                f"set pack.row_length={-(-size // 32) * 32} or more (or sampling.max_tokens lower)"
            )
        slot = next((i for i, free in enumerate(room) if free >= size), len(rows))
        if slot == len(rows):
            rows.append([])
            room.append(row_length)
        rows[slot].append(number)
        room[slot] -= size
    return rows


def _fill(rows: list[list[Segment]], count: int, row_length: int, rollouts: int) -> Batch:
    shape = (count, row_length)
    integers = ("tokens", "positions", "segment_ids", "rollout_tokens", "versions")
    floats = ("behaviour_logprobs", "reference_logprobs", "advantages", "values", "returns")
    arrays: dict[str, Any] = {name: np.zeros(shape, np.int32) for name in integers}
    arrays |= {name: np.zeros(shape, np.float32) for name in floats}
    arrays |= {name: np.zeros(shape, np.bool_) for name in ("mask", "chosen")}
    arrays |= {"rollouts": np.asarray(rollouts, np.int32)}
    if any(segment.pair for row in rows for segment in row):
        arrays["pairs"] = np.zeros(shape, np.int32)
    names = {name for row in rows for segment in row for name in segment.components}
    arrays |= {"components": {name: np.zeros(shape, np.float32) for name in sorted(names)}}
    routed = next((segment.experts for row in rows for segment in row if segment.experts is not None), None)
    if routed is not None:
        arrays["experts"] = np.full((*shape, *routed.shape[1:]), -1, np.int16)
    batch = Batch(**arrays)
    for r, row in enumerate(rows):
        start = 0
        for number, segment in enumerate(row, start=1):
            span = r, slice(start, start + len(segment.tokens))
            arrays["tokens"][span] = segment.tokens
            arrays["positions"][span] = np.arange(len(segment.tokens))
            arrays["segment_ids"][span] = number
            arrays["mask"][span] = segment.mask
            arrays["behaviour_logprobs"][span] = segment.logprobs
            arrays["advantages"][span] = segment.advantage
            arrays["rollout_tokens"][span] = segment.rollout_tokens
            arrays["versions"][span] = segment.versions or 0
            arrays["values"][span] = segment.values or 0.0
            arrays["returns"][span] = segment.returns or 0.0
            if "pairs" in arrays:
                arrays["pairs"][span] = segment.pair
            if segment.experts is not None:
                arrays["experts"][span] = segment.experts
            for name, weight in segment.components.items():
                arrays["components"][name][span] = weight
            start += len(segment.tokens)
    return batch
