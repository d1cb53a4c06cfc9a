"""Preference losses as updates: the value and the gradient are those of the pair loss, however answers are packed."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml

from rl.algorithms import preference
from rl.algorithms.pairs import PREFERENCES, kto_pair
from rl.cli.build import make_preference
from rl.cli.conf import CONF
from rl.data.pack import Segment, pack
from rl.ops.logprobs import TokenScores
from rl.trainer.minibatches import make_updates
from rl.trainer.optimizer import Optimizer
from rl.trainer.state import init_state
from rl.types import Batch

LOGPROBS = {1: [-1.0, -2.0], -1: [-0.5, -1.5, -1.0], 2: [-3.0], -2: [-0.25, -0.75]}  # of the answers, token by token
REFERENCE = -1.25  # of every token
IDS = {1: [1, 2], -1: [3, 4, 5], 2: [6], -2: [7, 8]}  # token ids; id 0 begins each answer
DESCENT = Optimizer(lambda hyper: optax.identity(), lambda step, hyper: jnp.ones(()), {"max_grad_norm": 1e9})


def batch(order: tuple[int, ...], row: int) -> Batch:
    parts = [Segment([0, *IDS[n]], [False, *[True] * len(IDS[n])], [0.0] * (1 + len(IDS[n])), pair=n) for n in order]
    for part in parts:
        part.rollout_tokens = sum(part.mask)
    found = pack(parts, row_length=row, rows_multiple=4)
    return found._replace(reference_logprobs=np.where(found.mask, np.float32(REFERENCE), np.float32(0)))


def score(params: jax.Array, batch: Batch, temperature: Any) -> TokenScores:
    """Each token id has a log-probability of its own."""
    return TokenScores(params[batch.tokens], jnp.zeros(batch.tokens.shape))


PARAMS = jnp.zeros(9).at[jnp.arange(1, 9)].set(jnp.array([p for n in IDS for p in LOGPROBS[n]]))


def updated(name: str, given: Batch, rows: int) -> tuple[dict[str, float], np.ndarray]:
    algorithm = PREFERENCES[name]()
    update = make_updates(score, algorithm, DESCENT, rows)
    fast = jax.jit(update, compiler_options={"xla_backend_optimization_level": 0})
    hyper = {**algorithm.hyper, **DESCENT.hyper, "temperature": 1.0}
    state, metrics = fast(init_state(PARAMS, DESCENT), given, hyper)
    return {name: float(value) for name, value in metrics.items()}, np.asarray(PARAMS - state.params)


def written_out(name: str, params: jax.Array) -> jax.Array:
    """The mean of the pair losses, straight from the log-probabilities."""
    per_token, margin = name in ("ipo", "orpo", "simpo"), name in ("dpo", "ipo", "kto")

    def answer(n: int) -> jax.Array:
        tokens = params[jnp.array(IDS[n])] - (REFERENCE if margin else 0.0)
        return tokens.mean() if per_token else tokens.sum()

    chosen, rejected = (jnp.stack([answer(sign * n) for n in (1, 2)]) for sign in (1, -1))
    if name == "kto":
        kl = jnp.maximum(jax.lax.stop_gradient(jnp.concatenate([chosen, rejected]).mean()), 0.0)
        return kto_pair(chosen, rejected, kl).mean()
    loss: Any = getattr(preference, name)
    return jnp.mean(loss(chosen, rejected))


@pytest.mark.parametrize("name", PREFERENCES)
def test_value_and_gradient_are_those_of_the_pair_loss(name: str) -> None:
    value, slope = jax.value_and_grad(lambda params: written_out(name, params))(PARAMS)
    for order, row, rows in (((1, -1, 2, -2), 16, 4), ((-2, 1, 2, -1), 4, 1)):
        metrics, moved = updated(name, batch(order, row), rows)
        assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
        np.testing.assert_allclose(moved, slope, atol=2e-6)
    alone, _ = updated(name, batch((1, -1, 2), 16), 4)
    assert math.isfinite(alone["loss"]) and alone["pairs/accuracy"] in (0.0, 1.0), "half a pair is none"


def test_dpo_in_numbers() -> None:
    # margins: 1: (-3 + 2.5) - (-3 + 3.75) = -1.25; 2: (-3 + 1.25) - (-1 + 2.5) = -3.25
    metrics, _ = updated("dpo", batch((1, -1, 2, -2), 16), 4)
    expected = (math.log1p(math.exp(0.125)) + math.log1p(math.exp(0.325))) / 2
    assert metrics["loss"] == metrics["pairs/loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["pairs/margin"] == pytest.approx(-2.25) and metrics["pairs/accuracy"] == 0


@pytest.mark.parametrize("name", PREFERENCES)
def test_every_preference_has_a_config(name: str) -> None:
    settings = yaml.safe_load((CONF / "preference" / f"{name}.yaml").read_text())
    assert make_preference(settings).hyper == {k: v for k, v in settings.items() if k != "name"}
    assert {path.stem for path in Path(CONF / "preference").iterdir()} == PREFERENCES.keys()


def test_several_steps_per_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="epochs=2: pairs are scored for one step"):
        make_updates(score, PREFERENCES["dpo"](), DESCENT, 1, epochs=2)
