"""The table of the bundled environments out of lines of results."""

from benchmarks.environments import table

SCRIPTED = {
    "environment": "nim", "splits.train": 2000, "splits.eval": 64, "turns": 3.81, "prompt_tokens": 1190.1,
    "completion_tokens": 15.2, "reward.empty": 0.0, "reward.random": 0.0, "reward.echo": 0.125,
    "reward.form_only": 0.0312, "reward.gold": 1.0, "rollouts_per_cpu_s": 6300.0, "memory_mb": 28,
}  # fmt: skip


def test_the_newest_value_of_each_key_counts() -> None:
    model = {"environment": "nim", "smollm2.reward": 0.25, "smollm2.low": 0.0712, "smollm2.high": 0.591}
    older, other = {**SCRIPTED, "turns": 9.0, "reward.gold": 0.5}, {"environment": "alphabet_sort", "memory_mb": 32}
    head, _, first, second = table([older, model, SCRIPTED, other]).splitlines()
    assert head.startswith("| environment | tasks | turns | tokens | empty |")
    assert first == f"| [alphabet_sort](alphabet_sort/README.md) |{' – |' * 10} 32 MB |"
    assert second == (
        "| [nim](nim/README.md) | 2,000 train / 64 eval | 3.8 | 1,190 + 15 | 0.00 | 0.00 | 0.12 | 0.03 | 1.00 "
        "| 0.25 (0.07 to 0.59) | 6,300 | 28 MB |"
    )


def test_a_row_without_a_measured_model_has_a_dash() -> None:
    model = {"environment": "nim", "smollm2.reward": None, "smollm2.low": None, "smollm2.high": None}
    assert "| 1.00 | – | 6,300 |" in table([SCRIPTED, model])
