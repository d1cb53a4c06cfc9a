"""Matrices in few bits: how far off they are, what they take, and that nothing flows into them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.models import qwen3_moe
from rl.models.base import DecoderConfig, Model, Params
from rl.models.decoder import hidden_states
from rl.models.llama import build
from rl.models.lora import Lora, adapt, dense, join, lora, split
from rl.models.quantize import KINDS, quantize

QUICKLY = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def few(model: Model, params: Params, kind: str) -> Params:
    return quantize(model, params, kind)


def numbers(adapters: Lora) -> Params:
    """An adapter that adds something."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(adapters.init, jax.random.key(0))
    return jax.tree.map(lambda like: jnp.asarray(0.2 * rng.standard_normal(like.shape), jnp.float32), shapes)


def drawn(model: Model) -> Params:
    """Weights without a random program."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda like: jnp.asarray(0.2 * rng.standard_normal(like.shape), jnp.float32), shapes)


def test_errors_are_within_half_a_step(params, few, kind) -> None:
    for group, name, inputs in [("attention", "q", (1,)), ("attention", "o", (1, 2)), ("ffn", "down", (1,))]:
        weight = np.asarray(params["layers"][group][name])
        found = np.asarray(few["layers"][group][name].dense())
        assert found.dtype == np.float32 and found.shape == weight.shape
        if kind == "int8":  # 127.5 steps to the largest weight of each output
            half = np.abs(weight).max(axis=inputs, keepdims=True) / 127.5 / 2
        else:  # the widest gap between nf4's numbers is 0.3039, of the largest in a block; o's blocks are a head's
            half = np.abs(weight).max(axis=inputs[-1], keepdims=True) * 0.3039 / 2
        assert (np.abs(found - weight) <= half * 1.001).all()
        relative = np.linalg.norm(found - weight) / np.linalg.norm(weight)
        assert relative < {"int8": 0.01, "nf4": 0.1}[kind]


def test_blocks_of_64_inputs_share_a_scale() -> None:
    wide = build(DecoderConfig(vocab_size=8, layers=1, width=192, heads=3, kv_heads=1, ffn=96))
    few = quantize(wide, drawn(wide), "nf4")["layers"]
    assert few["attention"]["q"].scale.shape == (1, 3, 3, 64)
    assert few["attention"]["o"].scale.shape == (1, 3, 1, 192)
    assert few["ffn"]["down"].scale.shape == (1, 2, 192), "96 is no multiple of 64: blocks of 48"


def test_memory(params, few, kind) -> None:
    def size(tree: Params) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    up, few_up = (tree["layers"]["ffn"]["up"] for tree in (params, few))
    assert size(up) == 2 * 32 * 64 * 4
    scales = 2 * 64 * 4  # one per output: of 32 inputs, a block of nf4 has them all
    assert size(few_up) == {"int8": 2 * 32 * 64, "nf4": 2 * 32 * 64 // 2}[kind] + scales
    assert few_up.values.addressable_data(0).on_device_size_in_bytes() == few_up.values.nbytes
    assert few["embed"] is params["embed"] and few["layers"]["ffn_norm"] == params["layers"]["ffn_norm"]


def test_the_sum_and_the_parts_compute_the_same_and_only_the_adapter_learns(model, few) -> None:
    adapters = lora(model, 2, 4.0, "attention/(q|v)|ffn/up")
    adapter = numbers(adapters)
    tokens = jnp.asarray([[5, 6, 7, 8, 200, 201, 5, 5]])

    def forward(params: Params) -> jax.Array:
        return hidden_states(model, params, tokens, jnp.arange(8)[None], jnp.ones_like(tokens))[0]

    trained, frozen = split(adapt(few, adapter, adapters.scale))
    run = jax.jit(forward, compiler_options=QUICKLY)
    np.testing.assert_allclose(run(join(trained, frozen)), run(dense(join(trained, frozen))), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda t: jnp.sin(forward(join(t, frozen))).sum()), compiler_options=QUICKLY)(trained)
    assert jax.tree.structure(gradient) == jax.tree.structure(adapter)
    assert all(float(jnp.abs(g).max()) > 1e-3 for g in jax.tree.leaves(gradient))


def test_errors(model, params, monkeypatch) -> None:
    with pytest.raises(ValueError, match="quantisation 'int4'; expected one of int8, nf4"):
        quantize(model, params, "int4")
    odd = build(DecoderConfig(vocab_size=8, layers=1, width=6, heads=1, kv_heads=1, ffn=5))
    with pytest.raises(ValueError, match="'layers/ffn/gate' ends in 5"):
        quantize(odd, drawn(odd), "nf4")
    monkeypatch.setattr("rl.models.quantize.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"int8 needs qwix, which is not installed: pip install 'upswing\[quantize\]'"):
        quantize(model, params, "int8")


def test_experts_have_adapters_and_few_bits_too() -> None:
    shape = {"vocab_size": 16, "layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "ffn": 16, "context": 8}
    experts = qwen3_moe.build(qwen3_moe.Qwen3MoeConfig(**shape, experts=3, experts_per_token=2, expert_ffn=8))
    few = quantize(experts, drawn(experts), "int8")
    assert few["layers"]["ffn"]["experts"]["gate"].scale.shape == (2, 3, 1, 8)
    assert isinstance(few["layers"]["ffn"]["router"]["weight"], jax.Array)
    adapters = lora(experts, 2, 4.0, "experts/(gate|down)")
    assert adapters.axes["layers"]["ffn"]["experts"]["down"] == {
        "a": ("layers", "experts", "ffn", "rank"),
        "b": ("layers", "experts", "rank", "embed"),
    }
    tokens = jnp.asarray([[5, 6, 7, 8, 2, 1, 5, 5]])

    def loss(trained: Params, frozen: Params | None) -> jax.Array:
        params = join(trained, frozen)
        hidden, _ = hidden_states(experts, params, tokens, jnp.arange(8)[None], jnp.ones_like(tokens))
        return jnp.sin(hidden).sum()

    trained, frozen = split(adapt(few, numbers(adapters), adapters.scale))
    found, gradient = jax.jit(jax.value_and_grad(loss), compiler_options=QUICKLY)(trained, frozen)
    added = jax.jit(loss, compiler_options=QUICKLY)(dense(join(trained, frozen)), None)
    assert float(found) == pytest.approx(float(added), abs=1e-4)
    assert all(float(jnp.abs(g).max()) > 1e-4 for g in jax.tree.leaves(gradient))
