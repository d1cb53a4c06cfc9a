"""Updates of an adapter: the rest stays as it was, takes no optimizer state and no checkpoint, on any mesh."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.algorithms import grpo
from rl.checkpoint import Checkpoints
from rl.data.pack import Segment, pack
from rl.models.base import DecoderConfig, Model, Params
from rl.models.llama import build
from rl.models.lora import adapt, join, lora, split
from rl.models.quantize import quantize
from rl.parallel.mesh import batch_constraint, make_mesh, parameter_shardings
from rl.trainer.optimizer import adamw
from rl.trainer.reference import make_with_reference
from rl.trainer.state import TrainState, init_state, parameter_count
from rl.trainer.update import make_score, make_update
from rl.types import Batch

ALGORITHM, OPTIMIZER = grpo(), adamw(lr=1e-2, steps=4)
HYPER = {**OPTIMIZER.hyper, **ALGORITHM.hyper, "temperature": 1.0}
TARGETS = "attention/(q|o)|ffn/down"


@pytest.fixture(scope="module")
def small() -> Model:
    return build(DecoderConfig(vocab_size=24, layers=2, width=16, heads=2, kv_heads=1, ffn=24, context=16))


def parameters(model: Model) -> Params:
    """Frozen in eight bits, with an adapter that adds something."""
    adapters = lora(model, 2, 4.0, TARGETS)
    adapter = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), initial(adapters.init))
    return adapt(quantize(model, initial(model.init), "int8"), adapter, adapters.scale)


def initial(init: Callable[[jax.Array], Params]) -> Params:
    return jax.jit(init)(jax.random.key(0))


def batch(step: int) -> Batch:
    rng = np.random.default_rng(step)
    parts = []
    for n in range(8):
        size = int(rng.integers(4, 9))
        mask = [False, False, *[True] * (size - 2)]
        logprobs = [-3.0 * m for m in mask]
        parts.append(Segment(rng.integers(0, 24, size).tolist(), mask, logprobs, float(n % 2) - 0.5, size - 2, True))
    return pack(parts, row_length=8, rows_multiple=8)


def compiled(model: Model, constrain: Callable[[Batch], Batch] = lambda batch: batch) -> Any:
    update = make_update(make_score(model), ALGORITHM, OPTIMIZER, 8, constrain)
    return jax.jit(update, donate_argnums=0, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def update(small: Model) -> Any:
    return compiled(small)


def fresh(model: Model) -> tuple[TrainState, Params]:
    trained, frozen = split(parameters(model))
    return init_state(trained, OPTIMIZER), frozen


def test_only_the_adapter_moves_and_only_it_is_in_the_state(small, update) -> None:
    state, frozen = fresh(small)
    before = jax.tree.map(np.array, (state.params, frozen))
    for step in range(2):
        state, metrics = update(state, batch(step), HYPER, frozen)
        assert metrics["nonfinite"] == 0 and metrics["grad_norm"] > 1e-3
    jax.tree.map(np.testing.assert_array_equal, frozen, before[1])
    moved = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), state.params, before[0])
    assert all(distance > 1e-3 for distance in jax.tree.leaves(moved))
    # q: 2 layers of 16x2 and 2x(2x8); o: the same; down: 24x2 and 2x16
    assert parameter_count(state.params) == 2 * (64 + 64 + 80)
    assert parameter_count(state.opt_state) == 2 * 416 + 1, "two moments and Adam's count"


def test_a_resumed_run_goes_on_to_the_same_bits(small, update, tmp_path: Path) -> None:
    state, frozen = fresh(small)
    checkpoints = Checkpoints(tmp_path, every=1, keep=1)
    for step in range(2):
        state, _ = update(state, batch(step), HYPER, frozen)
    checkpoints.save(state)
    checkpoints.wait()
    for step in range(2, 4):
        state, _ = update(state, batch(step), HYPER, frozen)
    like, frozen = fresh(small)
    again = Checkpoints(tmp_path, every=1, keep=1).load(like)
    assert again is not None
    for step in range(2, 4):
        again, _ = update(again, batch(step), HYPER, frozen)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < 60_000, "no base in the checkpoint"


def test_the_reference_is_the_adapter_that_training_began_with(small, update) -> None:
    state, frozen = fresh(small)
    first = jax.tree.map(jnp.copy, state.params)
    with_reference = make_with_reference(make_score(small), join(first, frozen), rows=8, temperature=1.0)
    one = batch(0)
    before = with_reference(one).reference_logprobs
    update(state, one, HYPER, frozen)
    np.testing.assert_array_equal(with_reference(one).reference_logprobs, before)
    assert float(before[one.mask].mean()) < -1


def test_a_mesh_does_not_change_the_update(small, update) -> None:
    alone, frozen = fresh(small)
    alone, expected = update(alone, batch(0), HYPER, frozen)
    mesh, rules = make_mesh({"data": 2, "fsdp": 4}), {"batch": "data", "embed": "data", "ffn": "fsdp"}
    adapters = lora(small, 2, 4.0, TARGETS)
    state, frozen = fresh(small)
    trained = jax.device_put(state.params, parameter_shardings(mesh, adapters.axes, rules))
    spread = jax.device_put(initial(small.init), parameter_shardings(mesh, small.axes, rules))
    _, frozen = split(adapt(quantize(small, spread, "int8"), trained, adapters.scale))
    values = frozen["layers"]["ffn"]["down"].base.values
    assert values.addressable_shards[0].data.shape == (2, 6, 8), "quantised where it lies"
    assert trained["layers"]["ffn"]["down"]["a"].addressable_shards[0].data.shape == (2, 6, 2)
    state, metrics = compiled(small, batch_constraint(mesh, rules))(
        init_state(trained, OPTIMIZER), batch(0), HYPER, frozen
    )
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), abs=1e-6)
    # Adam's first moment is a tenth of the gradient.
    found, wanted = (
        jnp.concatenate([g.ravel() for g in jax.tree.leaves(jax.device_get(s.opt_state[0].mu))]) for s in (state, alone)
    )
    assert float(jnp.linalg.norm(found - wanted)) < 2e-6 * float(jnp.linalg.norm(wanted))
