"""Adapters: what they compute, what is trained of them, and which weights they stand beside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.models.base import DecoderConfig, Model, Params
from rl.models.decoder import hidden_states
from rl.models.llama import build
from rl.models.lora import Lora, adapt, dense, join, lora, split

TARGETS = "attention/(q|k|v|o)|ffn/(gate|up|down)"
QUICKLY = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def adapters(model: Model) -> Lora:
    return lora(model, rank=4, alpha=8.0, targets=TARGETS)


@pytest.fixture(scope="module")
def adapter(adapters: Lora) -> Params:
    """One that adds something: B is not zero."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(adapters.init, jax.random.key(0))
    return jax.tree.map(lambda like: jnp.asarray(0.2 * rng.standard_normal(like.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def new(adapters: Lora) -> Params:
    return jax.jit(adapters.init, compiler_options=QUICKLY)(jax.random.key(1))


@pytest.fixture(scope="module")
def forward(model: Model):
    tokens = jnp.asarray([[5, 6, 7, 8, 9, 200, 201, 5, 5, 1], [9, 8, 7, 1, 2, 3, 4, 5, 6, 7]])
    positions = jnp.broadcast_to(jnp.arange(10)[None], (2, 10))

    def forward(params: Params) -> jax.Array:
        hidden, _ = hidden_states(model, params, tokens, positions, jnp.ones_like(tokens))
        return jnp.einsum("RLD,VD->RLV", hidden, model.head(params))

    return forward


@pytest.fixture(scope="module")
def logits(forward):
    return jax.jit(forward, compiler_options=QUICKLY)


def test_beside_the_weights_or_added_to_them_an_adapter_is_the_same(params, adapters, adapter, logits) -> None:
    beside = adapt(params, adapter, adapters.scale)
    added = dense(beside)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), added) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert added["embed"] is params["embed"], "what is not adapted is passed on"
    np.testing.assert_allclose(logits(beside), logits(added), atol=1e-5)
    assert np.abs(logits(beside) - logits(params)).max() > 0.1


def test_what_is_added_by_hand(params, adapter) -> None:
    added = dense(adapt(params, adapter, 0.5))["layers"]["attention"]
    q, o = (adapter["layers"]["attention"][name] for name in "qo")
    expected = np.einsum("ldr,lrnh->ldnh", q["a"], q["b"]) / 2
    np.testing.assert_allclose(added["q"] - params["layers"]["attention"]["q"], expected, atol=1e-6)
    expected = np.einsum("lnhr,lrd->lnhd", o["a"], o["b"]) / 2
    np.testing.assert_allclose(added["o"] - params["layers"]["attention"]["o"], expected, atol=1e-6)


def test_a_new_adapter_changes_no_bit(params, adapters, new, logits) -> None:
    beside = adapt(params, new, adapters.scale)
    np.testing.assert_array_equal(logits(beside), logits(params))
    np.testing.assert_array_equal(dense(beside)["layers"]["ffn"]["up"], params["layers"]["ffn"]["up"])


def test_the_gradient_is_that_of_the_sum_through_the_chain_rule(params, adapters, adapter, forward) -> None:
    def loss(params: Params) -> jax.Array:
        return jnp.sin(3 * forward(params)).mean()

    trained, frozen = split(adapt(params, adapter, adapters.scale))
    found = jax.jit(jax.grad(lambda trained: loss(join(trained, frozen))), compiler_options=QUICKLY)(trained)
    whole = jax.jit(jax.grad(loss), compiler_options=QUICKLY)(dense(join(trained, frozen)))
    for group, name, inputs in [("attention", "q", 1), ("attention", "o", 2), ("ffn", "down", 1)]:
        own, gradient = adapter["layers"][group][name], np.asarray(whole["layers"][group][name])
        a, b = own["a"].reshape(2, -1, 4), own["b"].reshape(2, 4, -1)
        gradient = gradient.reshape(2, a.shape[1], b.shape[2])
        assert np.prod(own["a"].shape[1 : 1 + inputs]) == a.shape[1]
        expected = {"a": 2 * gradient @ b.transpose(0, 2, 1), "b": 2 * a.transpose(0, 2, 1) @ gradient}
        for part, wanted in expected.items():
            got = np.asarray(found["layers"][group][name][part]).reshape(wanted.shape)
            assert np.linalg.norm(got - wanted) < 1e-5 * np.linalg.norm(wanted)
            assert np.linalg.norm(wanted) > 1e-4


def test_first_values_are_those_of_peft(new) -> None:
    first = new["layers"]
    q, o, down = first["attention"]["q"], first["attention"]["o"], first["ffn"]["down"]
    assert q["a"].shape == (2, 32, 4) and q["b"].shape == (2, 4, 4, 8)
    assert o["a"].shape == (2, 4, 8, 4) and o["b"].shape == (2, 4, 32)
    assert down["a"].shape == (2, 64, 4) and down["b"].shape == (2, 4, 32)
    assert all(not leaf["b"].any() for leaf in (q, o, down))
    for a, inputs in ((q["a"], 32), (o["a"], 32), (down["a"], 64)):  # uniform: deviation is bound / sqrt(3)
        assert float(jnp.abs(a).max()) == pytest.approx(inputs**-0.5, rel=0.03)
        assert float(a.std()) == pytest.approx((3 * inputs) ** -0.5, rel=0.1)


def test_scales(model) -> None:
    assert lora(model, 8, 16.0, TARGETS).scale == 2.0
    assert lora(model, 16, 16.0, TARGETS, root=True).scale == 4.0


def test_every_part_names_its_axes(adapters, new) -> None:
    assert adapters.axes["layers"]["attention"]["o"] == {
        "a": ("layers", "heads", "head", "rank"),
        "b": ("layers", "rank", "embed"),
    }
    ranks = jax.tree.map(lambda x, axes: len(axes) == x.ndim, new, adapters.axes)
    assert all(jax.tree.leaves(ranks))


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        ("attention/(q|v)", {"attention": {"q", "v"}}),
        ("up", {"ffn": {"up"}}),
        ("layers/.*/(k|down)", {"attention": {"k"}, "ffn": {"down"}}),
    ],
)
def test_targets_match_whole_names(model, targets: str, chosen: dict[str, set[str]]) -> None:
    found = lora(model, 2, 4.0, targets).axes["layers"]
    assert {group: set(names) for group, names in found.items()} == chosen


def test_biases_norms_and_embeddings_get_none() -> None:
    from rl.models.qwen2 import build

    shape = DecoderConfig(vocab_size=16, layers=2, width=8, heads=2, kv_heads=1, ffn=8)
    found = lora(build(shape), 2, 4.0, ".*").axes
    assert set(found) == {"layers"} and set(found["layers"]) == {"attention", "ffn"}
    assert set(found["layers"]["attention"]) == {"q", "k", "v", "o"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0; expected at least 1"),
        ({"targets": "attn/q"}, "matches none of the model's matrices: layers/attention/k, .*layers/ffn/up"),
        ({"targets": "attention/q_norm"}, "matches none"),
        ({"targets": "("}, "no regular expression: .*unterminated"),
    ],
)
def test_settings_that_do_not_fit_are_refused(model, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lora(model, **{"rank": 2, "alpha": 4.0, "targets": "q", **settings})


def test_parameters_without_an_adapter_are_trained_whole(params, adapter) -> None:
    assert split(params) == (params, None) and join(params, None) is params
    trained, frozen = split(adapt(params, adapter, 2.0))
    assert jax.tree.structure(trained) == jax.tree.structure(adapter)
    assert jax.tree.leaves(frozen)[0] is params["embed"] and len(jax.tree.leaves(frozen)) == len(
        jax.tree.leaves(params)
    )


def test_half_precision_computes_in_half_precision(params, adapters, adapter) -> None:
    sizes = {"vocab_size": 264, "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 64, "context": 48}
    half = build(DecoderConfig(**sizes, compute_dtype="bfloat16"))
    tokens = jnp.arange(8)[None]

    def forward(params: Params) -> jax.Array:
        return hidden_states(half, params, tokens, tokens, jnp.ones_like(tokens))[0]

    beside = adapt(params, adapter, adapters.scale)
    assert jax.eval_shape(forward, beside).dtype == jnp.bfloat16
    difference = jax.jit(lambda x, y: forward(x) - forward(y), compiler_options=QUICKLY)(beside, dense(beside))
    assert float(jnp.abs(difference.astype(jnp.float32)).max()) < 0.1
