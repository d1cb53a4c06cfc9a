"""Every family computes what Hugging Face transformers computes: stored logits of small models, no torch needed.

The stored ones are made by `tests/parity/reference.py`; `make test-parity` makes them anew.
"""

import json
from pathlib import Path

import numpy as np
import parity_ours
import pytest
from parity_cases import CASES, LENGTH, weight

from rl.models import FAMILIES

GOLDEN = Path(__file__).parents[1] / "golden" / "models"


def test_every_model_type_has_golden_logits() -> None:
    types = {model_type for family in FAMILIES.values() for model_type in family.model_types}
    assert {case.config["model_type"] for case in CASES.values()} == types
    assert {path.stem for path in GOLDEN.glob("*.npz")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    config, shapes = json.loads(str(golden["config"])), json.loads(str(golden["tensors"]))
    model, params, used = parity_ours.load(config, lambda tensor: weight(tensor, shapes[tensor]))
    assert used == set(shapes), "transformers names the same tensors on disk"
    read = parity_ours.family_of(config["model_type"]).read_config(CASES[name].config)
    assert read == model.config, "the shape is the same from the keys that older versions of transformers write"
    expected = golden["logits"]
    assert expected.std() > 0.5
    for layout, found in parity_ours.logits(model, params).items():
        assert len(found) in (LENGTH, len(expected))
        np.testing.assert_allclose(found, expected[: len(found)], rtol=0, atol=5e-5, err_msg=layout)
