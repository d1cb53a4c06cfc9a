"""Mixtures of experts: routers by hand, experts against a loop over them, what an update does with their load."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity_cases import CASES
from parity_cases import weight as draw

from rl.algorithms import supervised
from rl.data.pack import Segment, pack
from rl.models import glm4_moe
from rl.models.base import Model
from rl.models.decoder import hidden_states
from rl.models.gpt_oss import ClampedExperts, GptOssConfig
from rl.models.moe import (
    Experts,
    Routed,
    balance,
    loads,
    max_load,
    runs_of,
    sigmoid_top_k,
    softmax_top_k,
    through_experts,
    top_k_softmax,
)
from rl.models.qwen3_moe import Qwen3MoeConfig
from rl.parallel.mesh import make_mesh, parameter_shardings
from rl.trainer.optimizer import adamw
from rl.trainer.state import init_state
from rl.trainer.update import make_score, make_update

LOG = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))
"""Logits whose softmax is 0.1, 0.4, 0.2, 0.3."""


def compiled(function: Any) -> Any:
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def assert_routed(found: Routed, experts: list[int], weights: list[float]) -> None:
    assert found.experts.tolist() == [experts]
    np.testing.assert_allclose(found.weights, [weights], rtol=1e-6)


def test_softmax_then_the_best() -> None:
    assert_routed(softmax_top_k(LOG, k=2, normalise=False), [1, 3], [0.4, 0.3])
    assert_routed(softmax_top_k(LOG, k=2, normalise=True), [1, 3], [4 / 7, 3 / 7])


def test_the_best_then_softmax() -> None:
    assert_routed(top_k_softmax(LOG, k=3), [1, 3, 2], [4 / 9, 3 / 9, 2 / 9])


def test_sigmoids_in_groups() -> None:
    scores = jnp.array([[0.9, 0.1, 0.6, 0.5, 0.2, 0.7]])
    choose = partial(sigmoid_top_k, jnp.log(scores / (1 - scores)), k=2, groups=3)
    plain = jnp.zeros(6)
    # Pairs are worth 1.0, 1.1 and 0.9.
    assert_routed(choose(plain, top_groups=3, normalise=False, scale=1.0), [0, 5], [0.9, 0.7])
    assert_routed(choose(plain, top_groups=2, normalise=False, scale=1.0), [0, 2], [0.9, 0.6])
    assert_routed(choose(plain, top_groups=1, normalise=True, scale=2.5), [2, 3], [2.5 * 6 / 11, 2.5 * 5 / 11])
    bias = jnp.array([0, 0, 0, 0.5, 0, 0])  # moves the choice, not the weights
    assert_routed(choose(bias, top_groups=1, normalise=False, scale=1.0), [3, 2], [0.5, 0.6])
    np.testing.assert_array_equal(
        jax.grad(lambda b: choose(b, top_groups=2, normalise=True, scale=1.0).weights[0, 0])(bias), np.zeros(6)
    )


SIZES = {"vocab_size": 8, "layers": 1, "width": 6, "experts": 5, "experts_per_token": 2, "expert_ffn": 4}
SIZES |= {"heads": 1, "kv_heads": 1}


def loop(experts: Any, x: jax.Array, routed: Routed) -> jax.Array:
    """Every expert's every token, weighted by zero where it was not chosen."""
    out = jnp.zeros_like(x)
    for e in range(5):
        mine = experts(x, jnp.zeros(5, jnp.int32).at[e].set(len(x)), jnp.full(len(x), e))
        share = jnp.where(routed.experts == e, routed.weights, 0.0).sum(axis=1)
        out += mine * share[:, None]
    return out


@pytest.mark.parametrize("kind", ["plain", "clamped"])
def test_experts_equal_a_loop_over_them(kind: str) -> None:
    """Values and gradients, inside jit, scan and remat; one expert has no token."""
    graph, state = nnx.split(
        Experts(Qwen3MoeConfig(**SIZES)) if kind == "plain" else ClampedExperts(GptOssConfig(**SIZES, limit=0.5))
    )
    params = {name: jnp.asarray(draw(f"{name}.weight", leaf.shape)) for name, leaf in nnx.to_pure_dict(state).items()}
    x = jnp.asarray(draw("x.weight", (7, 6)))
    chosen = jnp.array([[0, 3], [3, 1], [1, 0], [4, 3], [3, 0], [0, 4], [3, 4]])
    weights = jnp.linspace(0.1, 1.4, 14).reshape(7, 2)

    def twice(how: Any, params: Any, x: jax.Array, weights: jax.Array) -> jax.Array:
        def layer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return x + how(nnx.merge(graph, nnx.State(params)), x, Routed(chosen, weights)), None

        out, _ = jax.lax.scan(jax.checkpoint(layer), x, length=2)
        return (out * jnp.cos(jnp.arange(6.0))[None]).sum()

    def sorted_by_expert(experts: Any, x: jax.Array, routed: Routed) -> jax.Array:
        return through_experts(x, routed, 5, experts)

    found, expected = (
        compiled(jax.value_and_grad(partial(twice, how), argnums=(0, 1, 2)))(params, x, weights)
        for how in (sorted_by_expert, loop)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, expected)
    assert (found[1][0]["down"][2] == 0).all(), "nobody chose it"
    assert all(np.abs(leaf).max() > 0.01 for leaf in jax.tree.leaves(found[1]))


def test_loads_leave_padding_out() -> None:
    experts = jnp.array([[[[0, 1], [0, 2], [0, 3]]], [[[3, 1], [3, 1], [2, 0]]]])  # two layers, a row of three tokens
    found = loads({"sparse_1": {"experts": experts}, "dense_0": {}}, jnp.array([[1, 1, 0]]), count=4)
    assert {stack: load.tolist() for stack, load in found.items()} == {"sparse_1": [[2, 1, 1, 0], [0, 2, 0, 2]]}
    assert float(max_load(found)) == 2.0
    assert float(max_load({"a": jnp.array([[1.0, 1.0]]), "b": jnp.array([[3.0, 1.0]])})) == 1.25


def test_balancing_raises_the_bias_of_idle_experts() -> None:
    params = {
        "dense_0": {"ffn": {"gate": jnp.zeros(1)}},
        "sparse_1": {"ffn": {"router": {"load_bias": jnp.array([[0.5, 0.0, 0.0, -0.5]]), "weight": jnp.ones(3)}}},
    }
    moved = balance(params, {"sparse_1": jnp.array([[4.0, 2.0, 0.0, 2.0]])}, 0.125)
    assert moved["sparse_1"]["ffn"]["router"]["load_bias"].tolist() == [[0.375, 0.0, 0.125, -0.5]]
    assert moved["dense_0"] is params["dense_0"]
    frozen = {"sparse_1": {"ffn": {"router": {"weight": jnp.ones(3)}}}}
    assert balance(frozen, {"sparse_1": jnp.ones((1, 4))}, 0.1) == frozen, "there may be no bias"


def test_layers_of_a_kind_lie_together() -> None:
    assert runs_of(3, ()) == [("layers", False, range(3))]
    assert runs_of(2, range(2)) == [("layers", True, range(2))]
    assert runs_of(5, (0, 3)) == [
        ("dense_0", True, range(1)),
        ("sparse_1", False, range(1, 3)),
        ("dense_3", True, range(3, 4)),
        ("sparse_4", False, range(4, 5)),
    ]


@pytest.fixture(scope="module")
def glm() -> Model:
    small = {"num_hidden_layers": 2, "first_k_dense_replace": 1, "attention_bias": False, "use_qk_norm": False}
    return glm4_moe.build(glm4_moe.read_config({**CASES["glm4_moe"].config, **small}))


@pytest.fixture(scope="module")
def glm_params(glm: Model) -> Any:
    """Numbers of which nothing is zero, by name."""
    shapes = jax.eval_shape(glm.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, s: jnp.asarray(draw(jax.tree_util.keystr(path), s.shape)), shapes
    )


def test_an_update_balances_and_leaves_the_bias_alone_otherwise(glm: Model, glm_params: Any) -> None:
    tokens = np.random.RandomState(0).randint(0, 29, (6, 9)).tolist()
    parts = [Segment(row, [False] + [True] * 8, [0.0] * 9, 0.0, 8) for row in tokens]
    batch = pack(parts, row_length=20, rows_multiple=4)
    assert batch.tokens.shape == (4, 20) and (batch.segment_ids == 0).any(axis=1).all()
    algorithm, optimizer = supervised(), adamw(lr=0.1, weight_decay=0.5, expert_bias_rate=0.25, steps=1)
    update = compiled(make_update(make_score(glm), algorithm, optimizer, microbatch_rows=2))
    hyper = {**algorithm.hyper, **optimizer.hyper, "temperature": 1.0}
    after, metrics = update(init_state(glm_params, optimizer), batch, hyper)

    _, observed = compiled(partial(hidden_states, glm))(glm_params, batch.tokens, batch.positions, batch.segment_ids)
    assert set(observed) == {"dense_0", "sparse_1"} and not observed["dense_0"]
    chosen = np.asarray(observed["sparse_1"]["experts"])[0][batch.segment_ids > 0]
    assert chosen.shape == (54, 3)
    load = np.bincount(chosen.ravel(), minlength=8)
    assert metrics["moe/max_load"] == pytest.approx(load.max() * 8 / load.sum(), rel=1e-6) and metrics["nonfinite"] == 0
    router, before = (p["sparse_1"]["ffn"]["router"] for p in (after.params, glm_params))
    np.testing.assert_allclose(
        router["load_bias"][0], before["load_bias"][0] + 0.25 * np.sign(load.mean() - load), rtol=1e-6
    )
    assert np.abs(router["weight"] - before["weight"]).mean() > 0.01
    moments = jax.tree_util.tree_leaves_with_path(after.opt_state)
    still = [leaf for path, leaf in moments if "load_bias" in jax.tree_util.keystr(path)]
    assert len(still) == 2 and not any(np.asarray(leaf).any() for leaf in still)

    unmoved, _ = update(init_state(glm_params, optimizer), batch, {**hyper, "expert_bias_rate": 0.0})
    np.testing.assert_array_equal(unmoved.params["sparse_1"]["ffn"]["router"]["load_bias"], before["load_bias"])


def test_experts_on_many_devices(glm: Model, glm_params: Any) -> None:
    mesh = make_mesh({"data": 2, "fsdp": 4})
    shardings = parameter_shardings(mesh, glm.axes, {"batch": "data", "experts": "fsdp", "embed": "fsdp"})
    split = jax.device_put(glm_params, shardings)
    shards = {name: leaf.addressable_shards[0].data.shape for name, leaf in split["sparse_1"]["ffn"]["experts"].items()}
    assert shards == {"gate": (1, 2, 32, 20), "up": (1, 2, 32, 20), "down": (1, 2, 20, 32)}, "8 experts on 4 devices"
    assert split["embed"].addressable_shards[0].data.shape == (29, 8), "and what has no experts by its width"
    tokens = np.random.RandomState(1).randint(0, 29, (2, 12)).astype(np.int32)
    rows = jax.tree.map(jnp.asarray, (tokens, np.arange(12, dtype=np.int32)[None].repeat(2, 0), np.ones_like(tokens)))
    run = compiled(lambda params: hidden_states(glm, params, *rows)[0])
    np.testing.assert_allclose(run(split), run(glm_params), atol=2e-5)
