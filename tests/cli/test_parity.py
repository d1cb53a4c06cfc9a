"""`rl parity` leaves numbers and a plot, and fails where it was told to."""

import json
from pathlib import Path

import pytest

from rl.cli.main import main

SMALL = [
    "model=tiny",
    "model.layers=1",
    "model.width=32",
    "model.ffn=48",
    "inference.slots=2",
    "tasks=2",
    "max_tokens=6",
]


def test_numbers_a_table_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", *SMALL, f"out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "parity.json").read_text())
    assert found["engine"] == "jax" and found["temperature"] == 1.0
    assert found["max_abs"] < 1e-4 and found["k3"] < 1e-8 and found["top1"] == 1.0
    assert sum(position["tokens"] for position in found["positions"]) == found["tokens"]
    assert (tmp_path / "parity.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "parity.html").read_text()
    assert "<h1>llama, untrained: jax beside the trainer</h1>" in page and "token of the completion" in page
    shown = capsys.readouterr().out
    assert "mean |difference| of log-probabilities, nats" in shown and str(tmp_path / "parity.html") in shown.replace(
        "\n", ""
    )
    assert main(["parity", *SMALL, f"out={tmp_path}", "fail_above=0"]) == 1
    assert "above fail_above=0: the engine does not sample" in capsys.readouterr().err


def test_greedy_sampling_has_no_log_probabilities_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", "temperature=0"]) == 2
    assert "temperature=0 tasks=16 max_tokens=64; expected all above 0" in capsys.readouterr().err
