"""Every way of giving credit, in numbers worked out by hand."""

import numpy as np
import pytest

from rl.ops import advantages as ops

REWARDS, ALL = np.array([[1.0, 2.0, 3.0, 6.0]]), np.ones((1, 4), bool)
LONE = np.array([[True, False, False, False]])


def test_the_deviation_of_the_batch() -> None:
    rewards, valid = np.array([[0.0, 2.0], [1.0, 5.0]]), np.ones((2, 2), bool)
    # deviation of 0, 2, 1, 5: mean 2, squares 4 + 0 + 1 + 9 = 14, sqrt(14 / 3) = 2.160247
    found = ops.group_mean_baseline(rewards, valid, std_over="batch", epsilon=0.0)
    np.testing.assert_allclose(found, np.array([[-1.0, 1.0], [-2.0, 2.0]]) / 2.160247, rtol=1e-6)


def test_a_lone_rollout_gets_nothing_or_its_reward() -> None:
    for function in (ops.leave_one_out_baseline, ops.mean_normalised, ops.group_mean_baseline):
        np.testing.assert_array_equal(function(REWARDS, LONE), [[0, 0, 0, 0]])
        np.testing.assert_allclose(function(REWARDS, LONE, lone="reward"), [[1, 0, 0, 0]], rtol=2e-6)
    np.testing.assert_array_equal(ops.optimal_reward_baseline(REWARDS, LONE, ALL, lone="reward"), [[1, 0, 0, 0]])


def test_the_baseline_weighted_by_length() -> None:
    # (1 * 4 + 2 * 1 + 3 * 1 + 6 * 2) / 8 = 21 / 8
    found = ops.optimal_reward_baseline(REWARDS, ALL, np.array([[4, 1, 1, 2]]))
    np.testing.assert_allclose(found, REWARDS - 2.625)


def test_relative_to_the_mean() -> None:
    found = ops.mean_normalised(np.array([[1.0, 0.0, 0.0, 0.0]]), ALL, epsilon=0.0)
    np.testing.assert_allclose(found, [[3.0, -1.0, -1.0, -1.0]])  # (1 - 1/4) / (1/4)


def test_only_the_best_learns() -> None:
    np.testing.assert_array_equal(ops.best_of_group(REWARDS, ALL, normalise_std=False), [[0, 0, 0, 3]])
    np.testing.assert_allclose(ops.best_of_group(REWARDS, ALL, epsilon=0.0), [[0, 0, 0, 3 / 2.160247]], rtol=1e-6)
    ties = np.array([[2.0, 2.0, 1.0, 0.0]])
    np.testing.assert_array_equal(ops.best_of_group(ties, ALL, normalise_std=False), np.zeros((1, 4)))
    np.testing.assert_array_equal(ops.best_of_group(REWARDS, LONE), np.zeros((1, 4)))
    np.testing.assert_array_equal(
        ops.best_of_group(np.array([[np.nan, -1.0, -3.0]]), np.array([[False, True, True]]), normalise_std=False),
        [[0, 2, 0]],
    )


def test_little_success_is_no_smaller_step() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(ops.group_policy_gradient(rewards, ALL), 4 * np.array([[0.75, -0.25, -0.25, -0.25]]))


def test_relative_to_the_greedy_answer() -> None:
    np.testing.assert_array_equal(ops.greedy_baseline(REWARDS, ALL, np.array([2.5])), [[-1.5, -0.5, 0.5, 3.5]])


def test_whitening_counts_tokens() -> None:
    values, weights = np.array([1.0, 3.0, 99.0]), np.array([3, 1, 0])
    # mean 6 / 4; squares 3 * 0.25 + 2.25 = 3, over 3 or 4
    np.testing.assert_allclose(ops.whiten(values, weights, epsilon=0.0), [-0.5, 1.5, 0.0])
    biased = ops.whiten(values, weights, epsilon=0.0, unbiased=False)
    np.testing.assert_allclose(biased, np.array([-0.5, 1.5, 0.0]) / np.sqrt(0.75))
    np.testing.assert_allclose(ops.whiten(values, weights, epsilon=3.0), [-0.25, 0.75, 0.0])
    np.testing.assert_allclose(ops.whiten(values, weights, epsilon=3.0, epsilon_in_root=False), [-0.125, 0.375, 0.0])


def test_several_rewards_say_equally_much() -> None:
    rewards = {"right": np.array([[0.0, 2.0]]), "format": np.array([[10.0, 0.0]])}
    valid = np.ones((1, 2), bool)
    np.testing.assert_allclose(ops.several_rewards(rewards, valid, epsilon=0.0), [[0.0, 0.0]], atol=1e-12)
    found = ops.several_rewards(rewards, valid, weights={"right": 2.0, "format": 1.0}, epsilon=0.0)
    np.testing.assert_allclose(found, [[-np.sqrt(0.5), np.sqrt(0.5)]])
    with pytest.raises(ValueError, match=r"rewards are \['format', 'right'\], weights are for \['wrong'\]"):
        ops.several_rewards(rewards, valid, weights={"wrong": 1.0})


def test_each_environment_has_its_own_moving_baseline() -> None:
    rewards, valid = np.array([[4.0, 8.0], [1.0, 0.0]]), np.array([[True, True], [True, False]])
    found, after = ops.moving_baseline(rewards, valid, ["chess", "go"], {"chess": 2.0}, decay=0.5)
    assert after == {"chess": 4.0, "go": 0.5}  # 0.5 * 2 + 0.5 * 6; 0.5 * 0 + 0.5 * 1
    np.testing.assert_array_equal(found, [[0.0, 4.0], [0.5, 0.0]])


def test_penalties_of_length() -> None:
    tokens = np.array([0, 80, 90, 100, 200])
    np.testing.assert_allclose(ops.overlong_penalty(tokens, limit=100.0, margin=20.0), [0, 0, -0.5, -1, -1])
    np.testing.assert_allclose(ops.linear_length_penalty(tokens, per_token=0.1, free=90.0), [0, 0, 0, -1, -11])
