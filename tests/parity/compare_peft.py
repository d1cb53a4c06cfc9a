"""Our adapters beside those of Hugging Face PEFT: ours in `peft`, and its own here. Needs torch: `make test-parity`."""

import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity_cases import CASES, sequences
from parity_ours import family_of

from rl.models.base import Model, Params
from rl.models.decoder import hidden_states
from rl.models.family import Family
from rl.models.lora import adapt, dense, lora
from rl.weights.peft import load_adapter, read_settings, save_adapter
from rl.weights.save import save_config, save_weights

TARGETS = {
    "llama": "attention/(q|k|v|o)|ffn/(gate|up|down)",
    "qwen2": "attention/(q|v)",
    "gemma3": "attention/o|ffn/(gate|down)",
    "glm4_moe": "attention/(q|o)",
}
BOUND = 1e-4
"""Largest difference of a logit, in float32."""


class Case(NamedTuple):
    """A small model with an adapter that adds something."""

    folder: Path
    family: Family
    model: Model
    params: Params
    adapted: Params


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All of them, with the logits that peft computes in their folders."""
    made = {name: make(name, tmp_path_factory.mktemp(name)) for name in TARGETS}
    command = [os.environ["PARITY_PYTHON"], Path(__file__).with_name("peft_reference.py")]
    command += [case.folder for case in made.values()]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=1800)
    return made


def make(name: str, folder: Path) -> Case:
    family = family_of(CASES[name].config["model_type"])
    model = family.build(family.read_config(CASES[name].config))
    rng = np.random.RandomState(0)

    def drawn(path: tuple[jax.tree_util.DictKey, ...], like: jax.ShapeDtypeStruct) -> jax.Array:
        around = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(around + 0.2 * rng.standard_normal(like.shape), jnp.float32)

    params = jax.tree.map_with_path(drawn, jax.eval_shape(model.init, jax.random.key(0)))
    adapters = lora(model, 4, 6.0, TARGETS[name])
    adapter = jax.tree.map_with_path(drawn, jax.eval_shape(adapters.init, jax.random.key(0)))
    (folder / "base").mkdir()
    (folder / "adapter").mkdir()
    save_weights(folder / "base", family, model, params, dtype=lambda _: "float32")
    save_config(folder / "base", family.write_config(model.config), None, "float32")
    save_adapter(folder / "adapter", family, model, adapter, alpha=6.0, root=False, base=None)
    (folder / "tokens.json").write_text(json.dumps([sequences()[0]]))
    return Case(folder, family, model, params, adapt(params, adapter, adapters.scale))


def logits(model: Model, params: Params) -> np.ndarray:
    tokens = jnp.asarray([sequences()[0]])
    positions = jnp.arange(tokens.shape[1])[None]
    forward = jax.jit(lambda params: hidden_states(model, params, tokens, positions, jnp.ones_like(tokens))[0])
    return np.asarray(forward(params) @ model.head(params).T)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max())


@pytest.mark.parametrize("name", TARGETS)
def test_our_adapter_in_peft(name: str, cases: dict[str, Case]) -> None:
    case = cases[name]
    expected = np.load(case.folder / "logits.npz")
    base = logits(case.model, case.params)
    assert difference(base, expected["base"]) < BOUND
    assert difference(logits(case.model, case.adapted), expected["beside"]) < BOUND
    assert difference(logits(case.model, dense(case.adapted)), expected["added"]) < BOUND
    assert difference(base, expected["beside"]) > 0.1, "it adds something"


@pytest.mark.parametrize("name", TARGETS)
def test_an_adapter_of_peft_here(name: str, cases: dict[str, Case]) -> None:
    case = cases[name]
    expected = np.load(case.folder / "logits.npz")
    theirs = case.folder / "theirs"
    settings = read_settings(theirs, case.family, case.model)
    assert (settings.rank, settings.alpha, settings.root) == (3, 5.0, True)
    adapters = lora(case.model, settings.rank, settings.alpha, settings.targets, root=settings.root)
    adapter = load_adapter(theirs, case.family, case.model, jax.jit(adapters.init)(jax.random.key(0)))
    assert difference(logits(case.model, adapt(case.params, adapter, adapters.scale)), expected["theirs"]) < BOUND
    assert difference(expected["base"], expected["theirs"]) > 0.1
