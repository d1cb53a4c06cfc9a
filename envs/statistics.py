"""What a handful of rollouts says about a model, honestly: means over tasks, intervals, pass@k."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

_Z = 1.959963984540054  # the normal distribution's 97.5 % point
_T_SMALL = {1: 12.706204736, 2: 4.302652730, 3: 3.182446305, 4: 2.776445105}


@dataclass(frozen=True)
class Interval:
    """A mean with its uncertainty.

    Attributes:
        mean: over tasks, each of which counts the same however many rollouts it has.
        standard_error: of the mean, from the spread of the tasks' means (rollouts of one task are not independent);
            None for a single task.
        low, high: a 95 % confidence interval; None where a single task says nothing.
        tasks: how many tasks it rests on.
    """

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    tasks: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "standard_error": self.standard_error,
            "ci95": None if self.low is None else [self.low, self.high],
            "tasks": self.tasks,
        }


def estimate(values: Sequence[Sequence[float]]) -> Interval:
    """The mean of per-task values with a 95 % interval.

    In general the interval is Student's t over the tasks' means. Values that are all 0 or 1 get Wilson's score interval
    instead, which stays honest at 0 % and 100 %; its number of observations is the effective one, p(1 - p) / SE², at
    least the number of tasks and at most that of rollouts (so, with one rollout per task, plainly the number of tasks).

    Args:
        values: for each task the values of its rollouts, at least one.

    Raises:
        ValueError: without any task, or for a task without values.
    """
    if not values or not all(values):
        raise ValueError("expected at least one task, and at least one value for each")
    means = [math.fsum(task) / len(task) for task in values]
    mean, error = _mean_and_error(means)
    if all(value in (0, 1) for task in values for value in task):
        rollouts = sum(len(task) for task in values)
        effective = mean * (1 - mean) / error**2 if error else len(values)
        low, high = wilson(mean, min(max(effective, len(values)), rollouts))
        return Interval(mean, error, low, high, len(values))
    return _student(mean, error, len(values))


def difference(before: Sequence[float], after: Sequence[float]) -> Interval:
    """The mean of `after - before` over tasks, paired, with a 95 % interval by Student's t."""
    gains = [b - a for a, b in zip(before, after, strict=True)]
    return _student(*_mean_and_error(gains), len(gains))


def wilson(share: float, observations: float) -> tuple[float, float]:
    """Wilson's 95 % score interval for a share (Wilson 1927); never degenerate, never outside 0 … 1."""
    z2 = _Z**2 / observations
    centre = (share + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(share * (1 - share) / observations + z2 / (4 * observations))
    return (0.0 if share == 0 else max(0.0, centre - half)), (1.0 if share == 1 else min(1.0, centre + half))


def t_quantile(freedom: int) -> float:
    """The 97.5 % point of Student's t: a table up to 4 degrees of freedom, then the expansion 26.7.5 of Abramowitz and
    Stegun, right to 3e-4.
    """
    if freedom < 1:
        raise ValueError(f"expected at least one degree of freedom, found {freedom}")
    if freedom in _T_SMALL:
        return _T_SMALL[freedom]
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / math.pow(freedom, power) for power, term in enumerate(terms, start=1))


def pass_at_k(rollouts: int, successes: int, k: int) -> float:
    """The chance that at least one of `k` rollouts succeeds: the unbiased estimator of Chen et al. 2021
    (arXiv 2107.03374, equation 1), 1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError: unless 1 ≤ k ≤ rollouts and 0 ≤ successes ≤ rollouts.
    """
    if not 1 <= k <= rollouts or not 0 <= successes <= rollouts:
        raise ValueError(f"pass@{k} of {rollouts} rollouts with {successes} successes")
    return 1.0 - math.comb(rollouts - successes, k) / math.comb(rollouts, k)


def pass_all_k(rollouts: int, successes: int, k: int) -> float:
    """The chance that all of `k` rollouts succeed, pass^k of Yao et al. 2024 (arXiv 2406.12045): C(c, k) / C(n, k).

    Raises:
        ValueError: unless 1 ≤ k ≤ rollouts and 0 ≤ successes ≤ rollouts.
    """
    if not 1 <= k <= rollouts or not 0 <= successes <= rollouts:
        raise ValueError(f"pass^{k} of {rollouts} rollouts with {successes} successes")
    return math.comb(successes, k) / math.comb(rollouts, k)


def chance(values: Sequence[float]) -> Interval:
    """The mean of one chance per task, as `estimate` has it, with an interval inside 0 … 1."""
    found = estimate([[value] for value in values])
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def _mean_and_error(means: Sequence[float]) -> tuple[float, float | None]:
    n = len(means)
    mean = math.fsum(means) / n
    if n == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in means) / (n - 1)
    return mean, math.sqrt(variance / n)


def _student(mean: float, error: float | None, tasks: int) -> Interval:
    if error is None:
        return Interval(mean, None, None, None, tasks)
    half = t_quantile(tasks - 1) * error
    return Interval(mean, error, mean - half, mean + half, tasks)
