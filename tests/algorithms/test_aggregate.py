from dataclasses import replace

import jax
import numpy as np
import pytest

from rl.algorithms.aggregate import aggregation
from rl.data.pack import Segment, pack

SHORT = Segment([1, 2, 3], [False, True, True], [0.0, -1.0, -1.0], rollout_tokens=2)
LONG = Segment([4, 5, 6, 7], [False, True, True, True], [0.0, -1.0, -1.0, -1.0], rollout_tokens=4)
LATER = Segment([8, 9], [False, True], [0.0, -1.0], rollout_tokens=4, starts_rollout=False)  # of the same rollout
SILENT = Segment([9], [False], [0.0], rollout_tokens=0)
BATCH = pack([SHORT, LONG, LATER, SILENT], row_length=7, rows_multiple=1)
"""Rows: LONG and SHORT; LATER, SILENT and padding. Six trainable tokens in two rollouts."""


def test_the_batch_is_what_the_expectations_assume() -> None:
    np.testing.assert_array_equal(BATCH.tokens, [[4, 5, 6, 7, 1, 2, 3], [8, 9, 9, 0, 0, 0, 0]])
    assert BATCH.rollouts == 2


@pytest.mark.parametrize(
    ("kind", "long", "later", "short"),
    [("token_mean", 1 / 6, 1 / 6, 1 / 6), ("sequence_mean", 1 / 8, 1 / 8, 1 / 4), ("constant", 0.1, 0.1, 0.1)],
)
def test_weights_by_hand(kind: str, long: float, later: float, short: float) -> None:
    weights = jax.jit(aggregation(kind, horizon=5))(BATCH)  # type: ignore[arg-type]
    expected = [[0, long, long, long, 0, short, short], [0, later, 0, 0, 0, 0, 0]]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["token_mean", "sequence_mean", "constant"])
def test_nothing_to_train_on_weighs_nothing(kind: str) -> None:
    empty = pack([replace(SILENT)], row_length=4, rows_multiple=1)
    np.testing.assert_array_equal(aggregation(kind, horizon=5)(jax.device_put(empty)), np.zeros((1, 4)))  # type: ignore[arg-type]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon is 0; expected at least 1 token"):
        aggregation("constant", 0)
    with pytest.raises(TypeError, match="kind"):
        aggregation("mean", 1)  # type: ignore[arg-type]
