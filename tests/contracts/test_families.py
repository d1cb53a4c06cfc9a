"""What every model family keeps to. New ones are found by listing."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity_cases import CASES, LENGTH

from rl.data.pack import Segment, pack
from rl.inference.engine import TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.models import FAMILIES
from rl.models.base import DecoderConfig, Model
from rl.models.decoder import UNROLLED_LAYERS, hidden_states
from rl.models.family import Family
from rl.trainer.update import make_score

ROWS = (jnp.ones((1, 8), jnp.int32), jnp.arange(8, dtype=jnp.int32)[None], jnp.ones((1, 8), jnp.int32))


def family_of(name: str) -> Family:
    (family,) = (family for family in FAMILIES.values() if CASES[name].config["model_type"] in family.model_types)
    return family


def shape(name: str, **keys: Any) -> DecoderConfig:
    return family_of(name).read_config({**CASES[name].config, **keys})


def flat(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return {"/".join(entry.key for entry in path): leaf for path, leaf in leaves}


def shapes_of(model: Model) -> dict[str, Any]:
    return flat(jax.eval_shape(model.init, jax.random.key(0)))


def drawn(model: Model) -> Any:
    """Parameters of any numbers; drawing them with jax takes seconds to compile."""
    rng = np.random.RandomState(0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        around = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return (around + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def test_a_family_is_named_like_its_file() -> None:
    for name, family in FAMILIES.items():
        assert family.name == name and (Path(__file__).parents[2] / "rl" / "models" / f"{name}.py").is_file()
    types = [model_type for family in FAMILIES.values() for model_type in family.model_types]
    assert len(types) == len(set(types))


@pytest.mark.parametrize("name", CASES)
def test_a_shape_survives_config_json(name: str) -> None:
    config, family = shape(name), family_of(name)
    written = family.write_config(config)
    assert written["model_type"] == CASES[name].config["model_type"]
    assert written["architectures"][0].endswith("ForCausalLM")
    assert family.read_config(written) == config


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_a_place_in_a_checkpoint_and_names_its_axes(name: str) -> None:
    config, family = shape(name), family_of(name)
    model = family.build(config)
    shapes, axes = shapes_of(model), flat(model.axes)
    assert set(family.tensors(config)) == set(shapes) == set(axes)
    for path, leaf in shapes.items():
        assert len(axes[path]) == len(leaf.shape) and all(isinstance(axis, str) for axis in axes[path]), path
        assert ("{layer}" in family.tensors(config)[path].name) == (axes[path][0] == "layers"), path


def operations(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from operations(inner)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_deeper_model_is_no_longer_program(name: str) -> None:
    def program(layers: int) -> list[str]:
        model = FAMILIES[name].build(shape(name, num_hidden_layers=layers))
        params = jax.eval_shape(model.init, jax.random.key(0))
        run = jax.make_jaxpr(jax.grad(lambda params: hidden_states(model, params, *ROWS, remat=True)[0].sum()))
        return list(operations(run(params).jaxpr))

    few, many = program(2 * UNROLLED_LAYERS), program(6 * UNROLLED_LAYERS)
    assert few == many and few.count("scan") + few.count("while") >= 2


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_close_to_float32(name: str) -> None:
    found = {}
    params = drawn(FAMILIES[name].build(shape(name, num_hidden_layers=2)))
    for dtype in ("float32", "bfloat16"):
        model = FAMILIES[name].build(replace(shape(name, num_hidden_layers=2), compute_dtype=dtype))

        def run(params: Any, model: Model = model) -> jax.Array:
            return hidden_states(model, params, *ROWS)[0]

        hidden = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(params)
        assert hidden.dtype == dtype
        found[dtype] = np.asarray(hidden.astype(jnp.float32))
        gradient = jax.eval_shape(jax.grad(lambda params, run=run: run(params).astype(jnp.float32).sum()), params)
        assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    assert 0 < np.abs(found["float32"] - found["bfloat16"]).max() < 0.2


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    """For an engine, whose programs take no options."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("name", [*FAMILIES, "mistral", "qwen2_windows"])
@pytest.mark.usefixtures("quick_compilation")
async def test_the_engine_samples_what_the_trainer_scores(name: str) -> None:
    """Prompts shorter and longer than a window, and completions that leave it."""
    model = family_of(name).build(shape(name))
    params = jax.device_put(drawn(model))
    engine = JaxEngine(model, params, slots=2, lanes=1, context=40, chunk=8)
    prompts = [[(5 * i) % 29 for i in range(n)] for n in (4, 15)]
    try:
        greedy = TokenSampling(temperature=0.0, max_tokens=25)
        generations = await asyncio.gather(*(engine.generate(prompt, greedy) for prompt in prompts))
    finally:
        await engine.close()
    parts = [
        Segment([*p, *g.ids], [False] * len(p) + [True] * 25, [0.0] * len(p) + g.plain_logprobs, 0.0, 25)
        for p, g in zip(prompts, generations, strict=True)
    ]
    batch = pack(parts, row_length=LENGTH, rows_multiple=2)
    found = np.asarray(jax.jit(make_score(model))(params, batch, 1.0).logprobs)
    np.testing.assert_allclose(batch.behaviour_logprobs[batch.mask], found[batch.mask], atol=1e-5)
    assert found[batch.mask].std() > 1e-3 and found[batch.mask].min() > -np.log(29), "greedy is better than a guess"
