"""Log-probabilities under a frozen reference policy, a few rows at a time."""

from collections.abc import Callable

import jax

from rl.models.base import Params
from rl.trainer.update import Score
from rl.types import Batch


def make_with_reference(score: Score, reference: Params, rows: int, temperature: float) -> Callable[[Batch], Batch]:
    """`with_reference(batch) -> batch` with `reference_logprobs` filled in.

    Args:
        score: from `make_score`.
        reference: parameters that nothing donates.
        rows: rows scored at once; divides the batch's number of rows.
        temperature: the distribution compared is the one sampled from.
    """

    @jax.jit
    def logprobs(params: Params, batch: Batch) -> jax.Array:
        shape = batch.tokens.shape
        per_row = (batch.tokens, batch.positions, batch.segment_ids)
        cut = jax.tree.map(lambda a: a.reshape(shape[0] // rows, rows, shape[1]), per_row)

        def one(part: tuple[jax.Array, ...]) -> jax.Array:
            tokens, positions, segment_ids = part
            few = batch._replace(tokens=tokens, positions=positions, segment_ids=segment_ids)
            return score(params, few, temperature).logprobs

        return jax.lax.map(one, cut).reshape(shape)

    return lambda batch: batch._replace(reference_logprobs=logprobs(reference, batch))
