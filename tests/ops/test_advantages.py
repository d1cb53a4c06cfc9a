import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rl.ops.advantages import group_mean_baseline, leave_one_out_baseline

REWARDS = np.array([[1.0, 2.0, 3.0, 6.0]])
ALL = np.ones((1, 4), bool)


def test_group_mean_divides_by_the_unbiased_deviation() -> None:
    # Mean 3, squares 4 + 1 + 0 + 9 = 14, deviation sqrt(14 / 3) = 2.16025 (the biased one would be 1.87083).
    advantages = group_mean_baseline(REWARDS, ALL)
    np.testing.assert_allclose(advantages, [[-0.925820, -0.462910, 0.0, 1.388730]], rtol=2e-6)
    np.testing.assert_array_equal(group_mean_baseline(REWARDS, ALL, normalise_std=False), [[-2.0, -1.0, 0.0, 3.0]])


def test_epsilon_is_added_to_the_deviation() -> None:
    np.testing.assert_allclose(
        group_mean_baseline(np.array([[0.0, 2.0]]), ALL[:, :2], epsilon=1.0), [[-0.414214, 0.414214]], rtol=1e-5
    )


def test_leave_one_out_compares_with_the_others() -> None:
    # 1 - (2 + 3 + 6) / 3, 2 - (1 + 3 + 6) / 3, 3 - (1 + 2 + 6) / 3, 6 - (1 + 2 + 3) / 3
    np.testing.assert_allclose(leave_one_out_baseline(REWARDS, ALL), [[-8 / 3, -4 / 3, 0.0, 4.0]], atol=1e-12)


def test_what_failed_neither_counts_nor_gets_credit() -> None:
    rewards = np.array([[1.0, np.nan, 3.0], [5.0, 7.0, 0.0], [4.0, 9.0, 9.0], [8.0, 8.0, 8.0]])
    valid = np.array([[True, False, True], [True, True, False], [True, False, False], [False, False, False]])
    expected = np.array([[-1.0, 0.0, 1.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(group_mean_baseline(rewards, valid, normalise_std=False), expected)
    np.testing.assert_allclose(group_mean_baseline(rewards, valid), expected / np.sqrt(2), rtol=1e-6)
    np.testing.assert_array_equal(leave_one_out_baseline(rewards, valid), 2 * expected)


def test_a_group_that_agrees_teaches_nothing() -> None:
    for value in (0.0, 0.1, 1e6):
        same = np.full((1, 4), value)
        np.testing.assert_allclose(group_mean_baseline(same, ALL), 0.0, atol=1e-4)
        np.testing.assert_allclose(leave_one_out_baseline(same, ALL), 0.0, atol=1e-9)


@given(
    hnp.arrays(np.float64, (3, 5), elements=st.floats(-100, 100)),
    hnp.arrays(np.bool_, (3, 5)),
    st.floats(-50, 50),
)
def test_advantages_sum_to_zero_and_ignore_a_constant(rewards: np.ndarray, valid: np.ndarray, shift: float) -> None:
    for baseline in (
        lambda r: group_mean_baseline(r, valid, normalise_std=False),
        lambda r: leave_one_out_baseline(r, valid),
    ):
        advantages = baseline(rewards)
        np.testing.assert_allclose(advantages.sum(axis=1), 0.0, atol=1e-9)
        np.testing.assert_allclose(baseline(rewards + shift), advantages, atol=1e-9)
        assert (advantages[~valid] == 0).all()


@pytest.mark.parametrize("function", [group_mean_baseline, leave_one_out_baseline])
def test_shapes_are_checked_in_tests(function) -> None:
    with pytest.raises(TypeError, match=r"rewards|valid"):
        function(REWARDS, ALL[:, :3])
