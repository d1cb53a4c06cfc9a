"""What a reward model says of an answer: at its last token, of all of it, and of nothing else in the row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.data.pack import Segment, pack
from rl.models.base import Model, Params
from rl.ops.logprobs import TokenScores
from rl.trainer.reward import make_reward_score
from rl.types import Batch

ANSWERS = ([1, 2, 3, 4], [1, 2, 9], [5, 6, 7, 8, 9])
HEAD = {"weight": 0.1 * jax.random.normal(jax.random.key(1), (32,)), "bias": jnp.float32(0.25)}


def packed(*answers: list[int], length: int) -> Batch:
    parts = [Segment(ids, [False, *[True] * (len(ids) - 1)], [0.0] * len(ids)) for ids in answers]
    return pack(parts, length, 1)


def said(model: Model, params: Params, batch: Batch) -> np.ndarray:
    scores: TokenScores = jax.jit(make_reward_score(model))(params, batch, 1.0, HEAD)
    assert scores.entropy is None
    return np.asarray(scores.logprobs)


def test_the_last_token_of_each_answer_tells_its_score(model: Model, params: Params) -> None:
    together = said(model, params, packed(*ANSWERS, length=16))
    assert np.flatnonzero(together[0]).tolist() == [4, 8, 11], "longest first"
    for place, ids in ((8, ANSWERS[0]), (11, ANSWERS[1]), (4, ANSWERS[2])):
        alone = said(model, params, packed(ids, length=len(ids)))  # nothing follows it
        assert np.count_nonzero(alone) == 1 and alone[0, -1] == pytest.approx(together[0, place], abs=1e-6)
    other = said(model, params, packed([1, 2, 3, 5], *ANSWERS[1:], length=16))
    assert abs(other[0, 8] - together[0, 8]) > 1e-4, "the last token itself counts"


def test_without_a_head_there_is_no_score(model: Model, params: Params) -> None:
    with pytest.raises(ValueError, match="a reward model judges with a critic's head"):
        make_reward_score(model)(params, packed(*ANSWERS, length=16), 1.0)
