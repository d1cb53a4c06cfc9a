"""What stops a run after an update."""

import pytest

from rl.trainer.step import MismatchError, check_mismatch


def test_a_sampler_that_drifts_stops_the_run() -> None:
    metrics = {"mismatch/k3": 0.2, "mismatch/abs": 0.5, "mismatch/max": 4.0, "staleness": 0.0}
    with pytest.raises(
        MismatchError, match=r"update 3: .* are 0\.2 nats per token \(k3; .* 0\.5, at worst 4\).* at most 0\.05"
    ):
        check_mismatch(3, metrics, 0.05)


@pytest.mark.parametrize(
    ("metrics", "limit"),
    [
        ({"mismatch/k3": 0.2, "staleness": 0.0}, None),
        ({"mismatch/k3": 0.2, "staleness": 0.5}, 0.05),
        ({"mismatch/k3": 0.04, "staleness": 0.0}, 0.05),
        ({"loss": 1.0}, 0.05),
    ],
)
def test_what_may_go_on(metrics: dict[str, float], limit: float | None) -> None:
    check_mismatch(3, metrics, limit)
