"""What is known of a batch before the update: log-probabilities under a frozen reference policy, what credit asks to be
told about each token. A few rows at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl.data.pack import Segment, lay, pack, taught, unpack
from rl.models.base import Params
from rl.models.lora import join
from rl.ops.logprobs import TokenScores
from rl.trainer.critic import whole
from rl.trainer.state import TrainState
from rl.trainer.update import Score
from rl.types import Batch

Look = Callable[[TrainState, Batch], Mapping[str, np.ndarray]]
"""`look(state, batch) -> {name: [R, L]}`."""


def make_with_reference(score: Score, reference: Params, rows: int, temperature: float) -> Callable[[Batch], Batch]:
    """`with_reference(batch) -> batch` with `reference_logprobs` filled in, and `top_ids` and `top_logprobs` where
    `score` tells them.

    Args:
        score: from `make_score`.
        reference: parameters that nothing donates.
        rows: rows scored at once; divides the batch's number of rows.
        temperature: the distribution compared is the one sampled from.
    """

    @jax.jit
    def told(params: Params, batch: Batch) -> dict[str, jax.Array]:
        result: dict[str, jax.Array] = by_rows(lambda few: _said(score(params, few, temperature)), batch, rows)
        return result

    # Another policy than the one that sampled: it is asked what it would do, and sends tokens where it likes.
    return lambda batch: batch._replace(**told(reference, batch._replace(experts=None)))


def _said(scores: TokenScores) -> dict[str, jax.Array]:
    """What a teacher or a reference says, by the names of a batch's fields."""
    found = {"reference_logprobs": scores.logprobs, "top_ids": scores.top_ids, "top_logprobs": scores.top_logprobs}
    return {name: values for name, values in found.items() if values is not None}


def make_taught(
    score: Score, row_length: int, rows: int, min_rows: int, temperature: float
) -> Callable[[Params, Sequence[Segment], Batch], Batch]:
    """`taught(params, parts, batch) -> batch`: in the place of `reference_logprobs` what a teacher, who reads
    `Segment.taught`, says of each sampled token; so with `top_ids` and `top_logprobs`, where `score` tells them.

    Args:
        score: from `make_score`.
        row_length: that the batch was packed with; the teacher's rows are as long, or twice, four times …
        rows: rows scored at once.
        min_rows: of the teacher's batch, so that few shapes occur.
        temperature: of the policy.
    """

    @jax.jit
    def told(params: Params, batch: Batch) -> dict[str, jax.Array]:
        result: dict[str, jax.Array] = by_rows(lambda few: _said(score(params, few, temperature)), batch, rows)
        return result

    def filled(params: Params, parts: Sequence[Segment], batch: Batch) -> Batch:
        read = [taught(part) for part in parts]
        length = row_length
        while length < max((len(part.tokens) for part in read), default=0):
            length *= 2
        found = jax.device_get(told(params, pack(read, length, rows, min_rows)))
        laid = {n: lay(parts, row_length, len(batch.tokens), unpack(read, length, said)) for n, said in found.items()}
        return batch._replace(**jax.tree.map(jnp.asarray, laid))

    return filled


def make_look(score: Score, names: Iterable[str], rows: int, temperature: float, frozen: Params | None = None) -> Look:
    """What the policy and the critic of a state say about each token, before they are updated.

    Args:
        score: from `make_score`, with `squares` if they are asked for.
        names: fields of `TokenScores`.
        rows: rows scored at once; divides the batch's number of rows.
        temperature: of the policy.
        frozen: weights beside the adapter that is trained.
    """
    chosen = sorted(names)

    @jax.jit
    def look(params: Params, critic: Params | None, batch: Batch, frozen: Params | None) -> dict[str, jax.Array]:
        policy = join(params, frozen)
        judged = () if critic is None else (whole(critic, policy, frozen),)

        def few(part: Batch) -> dict[str, jax.Array]:
            scores: TokenScores = score(policy, part, temperature, *judged)
            return {name: getattr(scores, name) for name in chosen}

        result: dict[str, jax.Array] = by_rows(few, batch, rows)
        return result

    def fetched(state: TrainState, batch: Batch) -> Mapping[str, np.ndarray]:
        critic = None if state.critic is None else state.critic.params
        found: Mapping[str, np.ndarray] = jax.device_get(look(state.params, critic, batch, frozen))
        return found

    return fetched


def by_rows(function: Callable[[Batch], Any], batch: Batch, rows: int) -> Any:
    """`function` of the tokens of a few rows at a time; its results, arrays `[rows, L, …]`, as one."""
    shape = batch.tokens.shape
    per_row = (batch.tokens, batch.positions, batch.segment_ids, batch.experts)
    cut = jax.tree.map(lambda a: a.reshape(shape[0] // rows, rows, *a.shape[1:]), per_row)

    def one(part: tuple[Any, ...]) -> Any:
        tokens, positions, segment_ids, experts = part
        few = batch._replace(tokens=tokens, positions=positions, segment_ids=segment_ids, experts=experts)
        return function(few._replace(top_ids=None, top_logprobs=None))

    return jax.tree.map(lambda a: a.reshape(*shape, *a.shape[3:]), jax.lax.map(one, cut))
