"""Several steps per batch, of plain gradient descent on a bigram table, so that steps can be added up."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl.algorithms import ALGORITHMS, Algorithm, grpo
from rl.data.pack import Segment, pack
from rl.ops.logprobs import TokenScores
from rl.trainer.minibatches import assigned, make_updates
from rl.trainer.optimizer import Optimizer
from rl.trainer.state import TrainState, init_state
from rl.types import Batch

V, ROWS = 7, 8
TABLE = {"logits": jax.random.normal(jax.random.key(3), (V, V))}
DESCENT = Optimizer(lambda hyper: optax.identity(), lambda step, hyper: hyper["lr"], {"max_grad_norm": 1e9})


def score(params: Any, batch: Batch, temperature: Any) -> TokenScores:
    logprobs = jax.nn.log_softmax(params["logits"][jnp.roll(batch.tokens, 1, axis=1)] / temperature)
    entropy = -(jnp.exp(logprobs) * logprobs).sum(axis=-1)
    return TokenScores(jnp.take_along_axis(logprobs, batch.tokens[..., None], axis=2)[..., 0], entropy)


def batch(poison: float = 1.0) -> Batch:
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(12):
        tokens = rng.integers(0, V, 4).tolist()
        parts.append(Segment(tokens, [False, True, True, True], [0.0, -2.0, -2.5, -1.5], float(rng.normal()), 3))
    parts[5].advantage *= poison
    packed = pack(parts, row_length=8, rows_multiple=ROWS)
    return packed._replace(behaviour_logprobs=np.asarray(score(TABLE, packed, 1.0).logprobs))


def after(algorithm: Algorithm, lr: float, given: Batch, **cut: int) -> tuple[TrainState, dict[str, float]]:
    update = make_updates(score, algorithm, DESCENT, 2, **cut)
    hyper = {**algorithm.hyper, **DESCENT.hyper, "lr": lr, "temperature": 1.0}
    fast = jax.jit(update, compiler_options={"xla_backend_optimization_level": 0})
    state, metrics = fast(init_state(TABLE, DESCENT), given, hyper)
    return state, {name: float(value) for name, value in metrics.items()}


def moved(state: TrainState) -> np.ndarray:
    return np.asarray(state.params["logits"] - TABLE["logits"])


@pytest.mark.parametrize(("minibatches", "epochs"), [(4, 1), (2, 2)])
def test_small_steps_add_up_to_the_gradient_of_the_batch(minibatches: int, epochs: int) -> None:
    whole, _ = after(grpo(), 3e-3, batch())
    cut, metrics = after(grpo(), 3e-3, batch(), minibatches=minibatches, epochs=epochs)
    assert whole.step == cut.step == 1, "versions, schedules and checkpoints count batches"
    difference = moved(cut) - minibatches * epochs * moved(whole)
    assert np.linalg.norm(difference) < 5e-3 * np.linalg.norm(moved(cut))
    assert metrics["nonfinite"] == 0 and metrics["lr"] == pytest.approx(3e-3)


def test_decoupled_ppo_clips_around_the_policy_that_the_batch_found() -> None:
    stale = batch()
    stale = stale._replace(behaviour_logprobs=np.where(stale.mask, stale.behaviour_logprobs - 1.0, 0.0))
    decoupled = ALGORITHMS["decoupled_ppo"]()
    _, once = after(decoupled, 3.0, stale)
    _, often = after(decoupled, 3.0, stale, epochs=4)
    assert once["clip_fraction"] == 0 and often["clip_fraction"] > 0.05
    assert once["mismatch/k1"] == often["mismatch/k1"] == pytest.approx(-1.0, abs=1e-5), "however far the steps went"
    assert often["correction/weight"] == pytest.approx(2.0), "e, truncated at 2"


def test_one_step_that_is_no_number_takes_all_of_them_back() -> None:
    state, metrics = after(grpo(), 0.1, batch(poison=np.nan), minibatches=4)
    assert state.step == 0 and metrics["nonfinite"] == 1
    np.testing.assert_array_equal(state.params["logits"], TABLE["logits"])


def test_every_pass_takes_each_row_once_and_neighbours_apart() -> None:
    rows = np.asarray(assigned(jnp.int32(5), 12, minibatches=3, epochs=2)).reshape(2, 3, 4)
    for each in rows:
        assert sorted(each.ravel()) == list(range(12))
        assert (each // 3 == [0, 1, 2, 3]).all(), "one of each three neighbours"
    assert (rows[0] != rows[1]).any()
