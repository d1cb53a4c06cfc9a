"""Rotary positions: the numbers of Hugging Face transformers, and what is refused.

`tests/golden/ropes.npz` is made by `tests/parity/reference.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity_cases import ROPES

from rl.models.rope import Rope, read_rope, write_rope

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ropes.npz")


@pytest.mark.parametrize("name", ROPES)
def test_frequencies_agree_to_the_last_bits(name: str) -> None:
    """Powers are rounded otherwise by torch and by NumPy, and by NumPy on another processor (with AVX-512, a fifth of
    them); beyond its context "dynamic" does more."""
    frequencies, scale = read_rope(ROPES[name].config).frequencies(ROPES[name].head_size)
    expected = GOLDEN[f"{name}/frequencies"]
    assert frequencies.dtype == expected.dtype == np.float32 and frequencies.shape == expected.shape
    np.testing.assert_allclose(frequencies, expected, rtol=3e-7)
    assert (frequencies == expected).mean() > (0.3 if name == "dynamic_beyond" else 0.75)
    assert scale == pytest.approx(float(GOLDEN[f"{name}/scale"]), rel=1e-12)


def test_dynamic_changes_nothing_within_the_original_context() -> None:
    plain, within, beyond = (
        read_rope(ROPES[name].config).frequencies(64)[0] for name in ("default", "dynamic", "dynamic_beyond")
    )
    assert (within == plain).all() and (beyond[1:] < plain[1:]).all()


@pytest.mark.parametrize("name", ROPES)
def test_config_json_keeps_it(name: str) -> None:
    rope = read_rope(ROPES[name].config)
    context = ROPES[name].config["max_position_embeddings"]
    assert read_rope({"max_position_embeddings": context, **write_rope(rope)}) == rope
    scaling = ROPES[name].config.get("rope_scaling", {})
    new = {"rope_parameters": {**scaling, "rope_theta": rope.theta}, "max_position_embeddings": context}
    assert read_rope(new) == rope, "transformers 5 writes it like this"


def test_a_few_angles_by_hand() -> None:
    frequencies, scale = Rope(theta=1e4).frequencies(4)
    np.testing.assert_allclose(frequencies, [1.0, 0.01], rtol=1e-6)
    assert scale == 1.0
    np.testing.assert_allclose(Rope(theta=1e4, part=0.5).frequencies(8)[0], [1.0, 0.01], rtol=1e-6)
    np.testing.assert_allclose(
        Rope(theta=1e4, stretch="linear", factor=4.0).frequencies(4)[0], [0.25, 0.0025], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            "rope type is 'longrope'; known: default, linear, dynamic",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope type 'linear' needs factor; found type"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "needs high_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, but this family turns whole heads"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, r"per kind of layer \(full_attention\)"),
    ],
)
def test_what_is_not_known_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rope({"max_position_embeddings": 64, **keys})
