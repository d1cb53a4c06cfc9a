"""The directions that rules make, by hand; what every rule keeps to in an update; rates by groups of parameters."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from envs.errors import ConfigError
from rl.algorithms import supervised
from rl.checkpoint import Checkpoints
from rl.cli.build import make_optimizer
from rl.config import OptimizerConfig
from rl.data.pack import Segment, pack
from rl.models.base import Model, Params
from rl.models.lora import lora
from rl.models.matrices import Matrix, matrices
from rl.ops.logprobs import TokenScores
from rl.parallel.mesh import make_mesh
from rl.trainer.optimizer import Optimizer, adamw, scheduled
from rl.trainer.rules import RULES, Rule, muon, sgd, sign
from rl.trainer.state import init_state
from rl.trainer.update import make_update
from rl.types import Batch

GRADS = {"w": jnp.array([0.5, -0.25, 0.0])}
BATCH = pack([Segment([1, 2, 3, 4, 5], [False, True, True, True, True], [0.0] * 5, 0.0, 4)] * 2, 8, 2)


def directions(rule: Rule, grads: Any, times: int = 2) -> list[Any]:
    """What one and the same gradient makes, update after update."""
    made = []
    with jax.numpy_dtype_promotion("standard"):
        transform = rule.transform(dict(rule.hyper))
        state = transform.init(jax.tree.map(jnp.zeros_like, grads))
        for _ in range(times):
            steps, state = transform.update(grads, state, jax.tree.map(jnp.zeros_like, grads))
            made.append(steps)
    return made


def test_momentum_by_hand() -> None:
    first, second = directions(sgd(momentum=0.5), GRADS)
    np.testing.assert_allclose(first["w"], [0.5, -0.25, 0.0])
    np.testing.assert_allclose(second["w"], [0.75, -0.375, 0.0])
    _, ahead = directions(sgd(momentum=0.5, nesterov=True), GRADS)
    np.testing.assert_allclose(ahead["w"], [0.875, -0.4375, 0.0])
    assert (directions(sgd(momentum=0.0), GRADS)[1]["w"] == GRADS["w"]).all()


def test_signs_by_hand() -> None:
    np.testing.assert_array_equal(directions(sign(), GRADS)[0]["w"], [1.0, -1.0, 0.0])
    rule = sign(b1=0.75, b2=0.5)
    transform = rule.transform(dict(rule.hyper))
    with jax.numpy_dtype_promotion("standard"):
        _, state = transform.update({"w": jnp.array([4.0, 1.0, -1.0])}, transform.init(GRADS))
        # The mean gradient is now (2, 0.5, -0.5), and counts three times as much as the gradient.
        steps, _ = transform.update({"w": jnp.array([-1.0, -4.0, 1.5])}, state)
    np.testing.assert_array_equal(steps["w"], [1.0, -1.0, 0.0])


def test_orthogonal_directions_have_the_size_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    known = {"layers/q": Matrix((2, 8, 4, 4), ("layers", "embed", "heads", "head"), 1, 1)}
    q = jnp.asarray(rng.normal(size=(2, 8, 4, 4)), jnp.float32)
    grads = {"layers": {"q": q}, "embed": jnp.array([[3.0, -0.5]])}
    (first,) = directions(muon(rms=0.3, eps=1e-12, matrices=known), grads, times=1)
    np.testing.assert_allclose(first["embed"], [[1.0, -1.0]], rtol=1e-5)  # AdamW's first step
    for layer in range(2):
        singular = np.linalg.svd(np.asarray(first["layers"]["q"][layer]).reshape(8, 16), compute_uv=False)
        # Newton-Schulz leaves singular values between 0.68 and 1.13 (Jordan 2024); the larger side has 16.
        assert (singular > 0.3 * 4 * 0.65).all() and (singular < 0.3 * 4 * 1.15).all()
    alone = directions(muon(rms=0.3, matrices=known), {"layers": {"q": q[1:]}}, times=1)[0]
    np.testing.assert_allclose(first["layers"]["q"][1:], alone["layers"]["q"], atol=2e-6)


def test_the_halves_of_an_adapter_are_matrices(model: Model) -> None:
    adapter = jax.eval_shape(lora(model, 2, 4.0, "attention/o").init, jax.random.key(0))
    rule = muon(matrices=matrices(model))
    state = jax.eval_shape(
        lambda: rule.transform(dict(rule.hyper)).init(jax.tree.map(lambda a: jnp.zeros(a.shape), adapter))
    )
    assert [leaf.shape for leaf in jax.tree.leaves(state.inner_states["matrix"]) if leaf.ndim > 1] == [
        (2, 4, 8, 2),
        (2, 2, 32),
    ]
    assert [leaf.shape for leaf in jax.tree.leaves(state.inner_states["other"])] == [()]


WEIGHTS = {
    "embed": jax.random.normal(jax.random.key(0), (8, 4)),
    "layers": {"up": jax.random.normal(jax.random.key(1), (1, 4, 8)) / 2},
}
KNOWN = {"layers/up": Matrix((1, 4, 8), ("layers", "embed", "ffn"), 1, 1)}
RATES = {"adamw": 0.03, "muon": 0.03, "sgd": 0.3, "sign": 0.01}


def score(params: Params, batch: Batch, temperature: jax.Array | float) -> TokenScores:
    """Every token given the one before it, through one matrix."""
    hidden = params["embed"][jnp.roll(batch.tokens, 1, axis=1)]
    logprobs = jax.nn.log_softmax(jnp.einsum("RLD,DV->RLV", hidden, params["layers"]["up"][0]) / temperature)
    chosen = jnp.take_along_axis(logprobs, batch.tokens[..., None], axis=2)[..., 0]
    return TokenScores(chosen, -(jnp.exp(logprobs) * logprobs).sum(axis=-1))


def optimizer(name: str, **settings: Any) -> Optimizer:
    rule = muon(matrices=KNOWN) if name == "muon" else RULES[name]()
    return scheduled(rule, steps=8, lr=RATES[name], weight_decay=0.01, **settings)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_learns_in_shards_goes_on_from_a_checkpoint_and_traces_its_numbers(
    name: str, tmp_path: Path
) -> None:
    chosen = optimizer(name, schedule="wsd", groups={"embed": 0.5})
    quick = {"xla_backend_optimization_level": 0}
    update = jax.jit(make_update(score, supervised(), chosen, 2), compiler_options=quick)
    hyper = {**chosen.hyper, "temperature": 1.0}
    sharding = NamedSharding(make_mesh({"data": 1, "fsdp": 2}), PartitionSpec("fsdp"))
    first = init_state({**WEIGHTS, "embed": jax.device_put(WEIGHTS["embed"], sharding)}, chosen)
    large = [leaf for leaf in jax.tree.leaves(first.opt_state) if leaf.shape == (8, 4)]
    assert large and all(leaf.addressable_shards[0].data.shape == (4, 4) for leaf in large)

    checkpoints = Checkpoints(tmp_path, every=1, keep=1)
    states, losses = [first], []
    for _ in range(4):
        state, metrics = update(states[-1], BATCH, hyper)
        states.append(state)
        losses.append(float(metrics["loss"]))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.01
    checkpoints.save(states[2])
    checkpoints.wait()
    again = checkpoints.load(first)
    assert again is not None
    for _ in range(2):
        again, _ = update(again, BATCH, hyper)
    jax.tree.map(np.testing.assert_array_equal, again, states[4])

    programs = update._cache_size()
    other, _ = update(states[3], BATCH, {key: value * 0.9 for key, value in hyper.items()})
    assert update._cache_size() == programs
    assert not np.array_equal(other.params["layers"]["up"], states[4].params["layers"]["up"])


def test_rates_by_group() -> None:
    params = {"embed": jnp.ones(2), "layers": {"attention": {"q": jnp.ones(2), "k": jnp.ones(2)}, "up": jnp.ones(2)}}
    optimizer = scheduled(
        sgd(momentum=0.0), steps=1, weight_decay=0.5, groups={"attention/q": 0.0, "attention/.*": 3.0, "embed": 0.1}
    )
    with jax.numpy_dtype_promotion("standard"):
        transform = optimizer.transform(optimizer.hyper)
        steps, _ = transform.update(jax.tree.map(jnp.zeros_like, params), transform.init(params), params)
    assert {name: float(leaf[0]) for name, leaf in steps["layers"]["attention"].items()} == {"q": 0.0, "k": 1.5}
    assert float(steps["embed"][0]) == pytest.approx(0.05) and float(steps["layers"]["up"][0]) == 0.5
    assert optimizer.hyper["lr_factor/attention/.*"] == 3.0


def test_what_does_not_fit_is_refused(model: Model) -> None:
    def of(name: str, **settings: Any) -> Optimizer:
        return make_optimizer(OptimizerConfig(name=name, **settings), 8, model)

    with pytest.raises(ValueError, match="groups has 'atention', which matches no parameter; known: embed, layers/up"):
        init_state(WEIGHTS, adamw(steps=1, groups={"atention": 1.0}))
    with pytest.raises(ConfigError, match=r"groups has '\(', which is no regular expression: missing \)"):
        of("adamw", groups={"(": 1.0})
    with pytest.raises(ConfigError, match=r"unknown optimizer\.name 'adam'; did you mean 'adamw'"):
        of("adam")
    with pytest.raises(ConfigError, match="optimizer 'sgd' has no argument 'b1'; its arguments: momentum"):
        of("sgd", b1=0.9)
    assert of("muon", rms=0.3, b1=0.8).hyper == {
        **scheduled(sgd(), steps=8).hyper,
        "momentum": 0.95,
        "rms": 0.3,
        "b1": 0.8,
        "b2": 0.95,
        "eps": 1e-8,
    }
