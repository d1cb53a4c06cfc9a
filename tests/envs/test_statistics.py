import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.statistics import chance, difference, estimate, pass_all_k, pass_at_k, t_quantile, wilson


def test_graded_values_get_students_interval_over_task_means() -> None:
    found = estimate([[0.1, 0.3], [0.4], [0.9]])
    # means 0.2, 0.4, 0.9: mean 0.5, deviation sqrt(0.13), t with 2 degrees of freedom 4.302653
    assert found.mean == pytest.approx(0.5)
    assert found.standard_error == pytest.approx(math.sqrt(0.13 / 3))
    assert (found.low, found.high) == (pytest.approx(-0.395666, abs=1e-5), pytest.approx(1.395666, abs=1e-5))
    assert found.tasks == 3


def test_rollouts_of_one_task_are_not_taken_for_independent() -> None:
    alone = estimate([[0.2], [0.5], [0.9]])
    repeated = estimate([[0.2] * 50, [0.5] * 50, [0.9] * 50])
    assert repeated.standard_error == pytest.approx(alone.standard_error)


def test_shares_get_wilsons_interval() -> None:
    found = estimate([[1], [1], [0], [1], [0], [1], [1], [1], [0], [1]])
    assert found.mean == 0.7
    assert found.standard_error == pytest.approx(math.sqrt(0.21 / 9))
    # 7 of 10, as R's prop.test(7, 10, correct = FALSE) says
    assert (found.low, found.high) == (pytest.approx(0.3967781, abs=1e-6), pytest.approx(0.8922087, abs=1e-6))


def test_shares_of_nothing_and_everything_are_still_uncertain() -> None:
    none, everything = estimate([[0.0]] * 20), estimate([[1.0]] * 20)
    assert (none.low, none.high) == (0.0, pytest.approx(0.1611252, abs=1e-6))
    assert (everything.low, everything.high) == (pytest.approx(0.8388748, abs=1e-6), 1.0)


def test_repeated_rollouts_count_as_far_as_they_tell_something_new() -> None:
    tasks = 10
    same = estimate([[1.0, 1.0]] * 5 + [[0.0, 0.0]] * 5)
    assert (same.low, same.high) == pytest.approx(wilson(0.5, tasks))
    mixed = estimate([[1.0, 0.0]] * tasks)
    assert (mixed.low, mixed.high) == pytest.approx(wilson(0.5, tasks))  # no spread between tasks: nothing to go by
    between = estimate([[1.0, 0.0]] * 8 + [[1.0, 1.0], [0.0, 0.0]])
    assert (between.low, between.high) == pytest.approx(wilson(0.5, 20))


def test_a_single_task_says_little_and_that_is_said() -> None:
    found = estimate([[0.3]])
    assert (found.mean, found.standard_error, found.low, found.high) == (0.3, None, None, None)
    assert found.to_dict() == {"mean": 0.3, "standard_error": None, "ci95": None, "tasks": 1}
    share = estimate([[1.0]])
    assert (share.low, share.high) == (pytest.approx(0.2065493, abs=1e-6), 1.0)


@pytest.mark.parametrize("values", [[], [[1.0], []]])
def test_nothing_has_no_mean(values: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="expected at least one task"):
        estimate(values)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=4), min_size=1, max_size=30))
def test_the_interval_of_a_share_holds_it_and_stays_within_bounds(values: list[list[float]]) -> None:
    found = estimate(values)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.high - found.low > 0.01


def test_wilson_covers_what_it_promises() -> None:
    """Over all outcomes of 30 tosses, weighted by their chance, about 95 % of the intervals hold the truth."""
    for truth in (0.1, 0.3, 0.5, 0.85):
        covered = 0.0
        for heads in range(31):
            low, high = wilson(heads / 30, 30)
            covered += math.comb(30, heads) * truth**heads * (1 - truth) ** (30 - heads) * (low <= truth <= high)
        assert 0.92 < covered < 0.99


@pytest.mark.parametrize(
    ("freedom", "point"),
    [(1, 12.7062), (2, 4.3027), (4, 2.7764), (5, 2.5706), (9, 2.2622), (30, 2.0423), (100, 1.9840), (10**6, 1.95997)],
)
def test_students_quantile_is_that_of_the_tables(freedom: int, point: float) -> None:
    assert t_quantile(freedom) == pytest.approx(point, abs=4e-4)
    with pytest.raises(ValueError, match="at least one degree of freedom"):
        t_quantile(0)


@pytest.mark.parametrize(
    ("rollouts", "successes", "k", "chance"),
    [(4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 1, 4, 1.0), (4, 0, 4, 0.0), (5, 2, 2, 0.7), (10, 3, 5, 11 / 12)],
)
def test_pass_at_k_is_the_unbiased_estimator(rollouts: int, successes: int, k: int, chance: float) -> None:
    assert pass_at_k(rollouts, successes, k) == pytest.approx(chance)


@pytest.mark.parametrize(("rollouts", "successes", "k"), [(2, 1, 3), (2, 1, 0), (2, 3, 1)])
def test_pass_at_k_needs_k_rollouts(rollouts: int, successes: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(rollouts, successes, k)


def test_pairing_takes_the_difficulty_of_tasks_out() -> None:
    gain = difference([0.0, 0.5, 0.9], [0.1, 0.6, 1.0])
    assert gain.mean == pytest.approx(0.1)
    assert gain.standard_error == pytest.approx(0.0, abs=1e-12)
    other = difference([0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0])
    assert (other.mean, other.standard_error) == (0.25, 0.25)
    assert other.low == pytest.approx(0.25 - 3.182446 * 0.25)


@pytest.mark.parametrize(("rollouts", "successes", "k", "share"), [(4, 4, 4, 1.0), (4, 2, 2, 1 / 6), (4, 1, 2, 0.0)])
def test_pass_all_k_is_the_share_of_samples_that_are_all_right(
    rollouts: int, successes: int, k: int, share: float
) -> None:
    assert pass_all_k(rollouts, successes, k) == pytest.approx(share)
    with pytest.raises(ValueError, match=r"pass\^5 of 4 rollouts"):
        pass_all_k(4, 2, 5)


def test_a_chance_stays_between_0_and_1() -> None:
    found = chance([1.0, 1.0, 0.5])
    assert found.mean == pytest.approx(5 / 6) and found.high == 1.0 and found.low == pytest.approx(0.1163, abs=1e-3)
    assert chance([0.5]).low is None
