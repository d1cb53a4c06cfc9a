"""Routing replay: own choices fed back, other choices by hand, and what is learned from them."""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity_cases import CASES
from parity_cases import weight as draw

from rl.models import FAMILIES
from rl.models.base import Model
from rl.models.decoder import hidden_states
from rl.models.moe import (
    Experts,
    Mixture,
    MoeConfig,
    Routed,
    Router,
    sigmoid_top_k,
    softmax_top_k,
    top_k_softmax,
)
from rl.models.replay import by_stack, chosen, expert_layers

LOG = np.log(np.array([[0.1, 0.4, 0.2, 0.3], [0.1, 0.4, 0.2, 0.3]], np.float32))
"""Logits of two tokens whose softmax is 0.1, 0.4, 0.2, 0.3."""

GIVEN = np.array([[2, 0], [-1, -1]], np.int32)
"""The first token goes through experts 2 and 0, the second where it likes."""


def compiled(function: Any) -> Any:
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def assert_routed(found: Routed, experts: list[list[int]], weights: list[list[float]]) -> None:
    assert found.experts.tolist() == experts
    np.testing.assert_allclose(found.weights, weights, rtol=1e-6)


def test_gates_are_computed_over_the_given_experts() -> None:
    scores = np.array([[0.9, 0.1, 0.6, 0.5], [0.9, 0.1, 0.6, 0.5]], np.float32)
    bias = jnp.array([0.0, 9.0, 0.0, 0.0])  # moves choices, neither weights nor what is given
    sigmoids = {"k": 2, "groups": 1, "top_groups": 1, "normalise": True, "scale": 2.0}
    plain, normed, best, scored = compiled(
        lambda log, odds, given: (
            softmax_top_k(log, None, given, k=2, normalise=False),
            softmax_top_k(log, None, given, k=2, normalise=True),
            top_k_softmax(log, None, given, k=2),
            sigmoid_top_k(odds, bias, given, **sigmoids),
        )
    )(LOG, np.log(scores / (1 - scores)), GIVEN)
    assert_routed(plain, [[2, 0], [1, 3]], [[0.2, 0.1], [0.4, 0.3]])
    assert_routed(normed, [[2, 0], [1, 3]], [[2 / 3, 1 / 3], [4 / 7, 3 / 7]])
    assert_routed(best, [[2, 0], [1, 3]], [[2 / 3, 1 / 3], [4 / 7, 3 / 7]])
    assert_routed(scored, [[2, 0], [1, 0]], [[2 * 0.6 / 1.5, 2 * 0.9 / 1.5], [2 * 0.1, 2 * 0.9]])


def test_gates_of_what_no_router_would_choose_are_numbers() -> None:
    far = jnp.array([[0.0, 300.0, -300.0, 299.0]])
    found, gradient = compiled(
        jax.value_and_grad(lambda x: softmax_top_k(x, None, jnp.array([[0, 2]]), k=2, normalise=True).weights[0, 0])
    )(far)
    assert found == 1.0 and np.isfinite(gradient).all()


def test_a_layer_by_hand() -> None:
    """`sum_e softmax(x W)[e] / (both) * down_e(silu(gate_e x) * up_e x)` over the given experts, in NumPy."""
    config = MoeConfig(
        vocab_size=8, layers=1, width=6, heads=1, kv_heads=1, experts=4, experts_per_token=2, expert_ffn=5
    )
    layer = Mixture(Router(config, partial(softmax_top_k, k=2, normalise=True)), Experts(config))
    graph, state = nnx.split(layer)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(draw(f"{jax.tree_util.keystr(path)}.weight", leaf.shape)),
        nnx.to_pure_dict(state),
    )
    x = draw("x.weight", (1, 3, 6))
    given = jnp.array([[[0, 1], [3, 2], [2, 0]]])

    def run(params: Any) -> jax.Array:
        out, seen = nnx.merge(graph, nnx.State(params))(jnp.asarray(x), given)
        assert seen["experts"].shape == (1, 3, 2)
        return out

    w = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    expected = np.zeros((3, 6))
    for t, pair in enumerate(given[0].tolist()):
        logits = x[0, t] @ w["router"]["weight"]
        gates = np.exp(logits[pair]) / np.exp(logits[pair]).sum()
        for gate, e in zip(gates, pair, strict=True):
            inner = x[0, t] @ w["experts"]["gate"][e]
            inner = inner / (1 + np.exp(-inner)) * (x[0, t] @ w["experts"]["up"][e])
            expected[t] += gate * inner @ w["experts"]["down"][e]
    np.testing.assert_allclose(compiled(run)(params)[0], expected, rtol=1e-4, atol=1e-5)

    gradient = compiled(jax.grad(lambda params: (run(params) ** 2).sum()))(params)
    assert np.abs(gradient["router"]["weight"]).max(axis=0).min() > 1e-3, "each expert was given to some token"


FEWER = {
    "glm4_moe": {"num_hidden_layers": 2, "first_k_dense_replace": 1},
    "qwen3_moe_mixed": {"num_hidden_layers": 3, "decoder_sparse_step": 1, "mlp_only_layers": [1]},
}


class Small:
    """A family's small model with random weights."""

    def __init__(self, name: str) -> None:
        config = {**CASES[name].config, **FEWER.get(name, {})}
        family = FAMILIES[config["model_type"]]
        self.model: Model = family.build(family.read_config(config))
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        self.params = jax.tree_util.tree_map_with_path(
            lambda path, s: jnp.asarray(draw(jax.tree_util.keystr(path), s.shape)), shapes
        )
        self.tokens = jnp.asarray(np.random.RandomState(0).randint(0, 29, (2, 12)))
        rows = jnp.arange(12)[None].repeat(2, 0), jnp.ones((2, 12), jnp.int32)

        def logits(params: Any, experts: Any) -> tuple[jax.Array, jax.Array]:
            hidden, observed = hidden_states(self.model, params, self.tokens, *rows, experts)
            return hidden @ self.model.head(params).T, chosen(self.model, observed)

        self.logits = compiled(logits)


of_family = functools.cache(Small)


def test_own_choices_fed_back_change_no_bit() -> None:
    """With stacks of layers that have experts before and after one that has none."""
    small = of_family("qwen3_moe_mixed")
    free, own = small.logits(small.params, None)
    config = small.model.config
    assert isinstance(config, MoeConfig)
    assert own.shape == (2, 12, sum(expert_layers(small.model).values()), config.experts_per_token)
    for given in (own, jnp.full_like(own, -1), own.at[:, 3:7].set(-1)):
        again, went = small.logits(small.params, given.astype(jnp.int16))
        np.testing.assert_array_equal(again, free)
        np.testing.assert_array_equal(went, own)


def test_given_experts_are_those_that_a_bias_would_choose() -> None:
    """GLM's balancing bias moves choices and nothing else: another way to send every token through experts 1, 4, 5."""
    small = of_family("glm4_moe")
    free, own = small.logits(small.params, None)
    wanted = jnp.sort(jnp.broadcast_to(jnp.array([1, 4, 5]), own.shape), axis=-1)
    biased = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.full_like(leaf, -50.0).at[:, jnp.array([1, 4, 5])].set(50.0)
            if "load_bias" in jax.tree_util.keystr(path)
            else leaf
        ),
        small.params,
    )
    expected, went = small.logits(biased, None)
    np.testing.assert_array_equal(jnp.sort(went, axis=-1), wanted)
    found, went = small.logits(small.params, wanted.astype(jnp.int16))
    np.testing.assert_array_equal(went, wanted)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(found - free).max() > 0.01
    np.testing.assert_array_equal(small.logits(small.params, own.astype(jnp.int16))[0], free)

    late, _ = small.logits(small.params, wanted.at[:, :8].set(-1).astype(jnp.int16))
    np.testing.assert_array_equal(late[:, :8], free[:, :8])
    assert np.abs(late[:, 8:] - free[:, 8:]).max() > 0.01


def test_choices_of_another_shape_are_refused() -> None:
    model = of_family("qwen3_moe_mixed").model
    assert expert_layers(model) == {"sparse_0": 1, "sparse_2": 1}
    assert {name: part.shape for name, part in by_stack(model, jnp.zeros((3, 7, 2, 2), jnp.int8)).items()} == {
        "sparse_0": (1, 3, 7, 2),
        "sparse_2": (1, 3, 7, 2),
    }
    with pytest.raises(ValueError, match=r"are \(2, 3\) \(layers, experts of a token\), but the model's are \(2, 2\)"):
        by_stack(model, jnp.zeros((3, 7, 2, 3), jnp.int8))
