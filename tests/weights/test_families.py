"""Every family's checkpoints, as transformers writes them, are read tensor for tensor and written again byte for byte.

Names, shapes and config are those of `tests/golden/models`, which transformers wrote.
"""

import json
from pathlib import Path

import jax
import numpy as np
import parity_ours
import pytest
from parity_cases import weight
from safetensors.numpy import save_file

from rl.models import FAMILIES
from rl.parallel.mesh import make_mesh, parameter_shardings
from rl.weights.load import load
from rl.weights.safetensors_dir import SafetensorsDirectory
from rl.weights.save import save_weights
from rl.weights.source import family_of, shape_of

NAMED_APART = ("llama", "llama_biases", "qwen2", "qwen3", "qwen3_moe_mixed", "gemma3", "glm4_moe", "gpt_oss")
"""Cases whose tensors have other names or shapes than the others'."""

GOLDEN = Path(__file__).parents[1] / "golden" / "models"


def test_every_family_is_among_them() -> None:
    types = {json.loads(str(np.load(GOLDEN / f"{name}.npz")["config"]))["model_type"] for name in NAMED_APART}
    assert all(types & set(family.model_types) for family in FAMILIES.values())


@pytest.mark.parametrize("name", NAMED_APART)
def test_a_checkpoint_is_read_and_written(name: str, tmp_path: Path) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    config, shapes = json.loads(str(golden["config"])), json.loads(str(golden["tensors"]))
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    (folder / "config.json").write_text(str(golden["config"]))
    tensors = {tensor: weight(tensor, shape) for tensor, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    source = SafetensorsDirectory(folder)
    family = family_of(source)
    model = family.build(shape_of(source))
    params = load(source, family, model, parameter_shardings(make_mesh({"data": 1}), model.axes, {}))
    _, expected, _ = parity_ours.load(config, tensors.__getitem__)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)

    save_weights(out, family, model, params, dtype=lambda tensor: "float32")
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
