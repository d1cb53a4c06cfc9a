import numpy as np
import pytest

from rl.ops.returns import discounted_returns, generalised_advantages, optimal_token_baseline, turn_returns

MASK = np.array([[1, 0, 1, 1, 0]])
REWARDS = np.array([[0.0, 0.0, 1.0, 4.0, 0.0]])


def test_returns_skip_what_the_policy_did_not_sample() -> None:
    # 4; 1 + 0.5 * 4 = 3; and 0 + 0.5 * 3 = 1.5, across the gap
    np.testing.assert_array_equal(discounted_returns(REWARDS, MASK, discount=0.5), [[1.5, 0, 3, 4, 0]])
    np.testing.assert_array_equal(discounted_returns(REWARDS, MASK), [[5, 0, 5, 4, 0]])


def test_turns_are_discounted_per_turn() -> None:
    np.testing.assert_array_equal(turn_returns(np.array([0.0, 0.0, 1.0]), discount=0.5), [0.25, 0.5, 1.0])
    np.testing.assert_array_equal(turn_returns(np.array([1.0, -1.0, 2.0])), [2.0, 1.0, 2.0])


def test_advantages_by_hand() -> None:
    values = np.array([[0.5, 9.0, 1.0, 2.0, 9.0]])
    # deltas: 4 - 2 = 2; 1 + 2 - 1 = 2; 0 + 1 - 0.5 = 0.5 (the next value is that of the third token)
    advantages, returns = generalised_advantages(REWARDS, values, MASK, discount=1.0, trace=0.5)
    np.testing.assert_array_equal(advantages[MASK > 0], [0.5 + 0.5 * 3, 2 + 0.5 * 2, 2])
    np.testing.assert_array_equal(returns[MASK > 0], [2.5, 4, 4])


@pytest.mark.parametrize(("trace", "expected"), [(0.0, [-1.0, 1.0, 1.0]), (1.0, [1.0, 2.0, 1.0])])
def test_from_one_step_to_monte_carlo(trace: float, expected: list[float]) -> None:
    rewards, values = np.array([[0.0, 0.0, 3.0]]), np.array([[2.0, 1.0, 2.0]])
    found, _ = generalised_advantages(rewards, values, np.ones((1, 3)), trace=trace, skip_masked=False)
    np.testing.assert_array_equal(found, [expected])


def test_the_optimal_baseline_weighs_by_the_score_function() -> None:
    returns = np.array([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]])
    logprobs, squares = np.log(np.full((3, 2), 0.5)), np.array([[1.0, 1.0], [3.0, 3.0], [1.0, 1.0]])
    # weights so far: 1 - 1 + 1 = 1, then 2; three times that for the second; the third is alone in its group
    found = optimal_token_baseline(returns, logprobs, squares, np.ones((3, 2)), np.array([0, 0, 1]), epsilon=0.0)
    np.testing.assert_allclose(found, [[1 - 2.5, 1 - 2.5], [3 - 2.5, 3 - 2.5], [5, 5]])


def test_the_longest_rollout_has_no_baseline_where_it_is_alone() -> None:
    mask = np.array([[1.0, 0.0], [1.0, 1.0]])
    logprobs, squares = np.log(np.full((2, 2), 0.5)), np.ones((2, 2))
    found = optimal_token_baseline(np.ones((2, 2)), logprobs, squares, mask, np.zeros(2), epsilon=0.0)
    np.testing.assert_allclose(found, [[0, 0], [0, 1]])
