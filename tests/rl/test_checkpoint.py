"""Checkpoints: bit for bit, whole or not there, the newest few, and errors that name what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.errors import ConfigError, UpswingError
from rl.checkpoint import Checkpoints, load_params
from rl.models.base import DecoderConfig
from rl.models.llama import build
from rl.trainer.optimizer import adamw
from rl.trainer.state import TrainState, init_state


@pytest.fixture
def state(params) -> TrainState:
    return init_state(params, adamw(steps=5))


def at(state: TrainState, step: int) -> TrainState:
    params = jax.tree.map(lambda a: a + jnp.float32(step) / 3, state.params)
    return state._replace(step=jnp.asarray(step, jnp.int32), params=params)


def equal(a: TrainState, b: TrainState) -> bool:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_the_newest_state_comes_back_bit_for_bit_and_older_ones_go(state, tmp_path):
    checkpoints = Checkpoints(tmp_path / "train", every=2, keep=2)
    assert checkpoints.load(state) is None
    for step in (2, 4, 6):
        checkpoints.save(at(state, step))
    checkpoints.wait()
    assert checkpoints.steps() == [4, 6]
    again = Checkpoints(tmp_path / "train", every=2, keep=2).load(state)
    assert again is not None and equal(again, at(state, 6))


def test_a_state_survives_that_its_buffers_are_donated_at_once(state, tmp_path):
    checkpoints = Checkpoints(tmp_path / "train", every=1, keep=1)
    wanted = jax.tree.map(np.array, at(state, 1))
    live = at(state, 1)
    checkpoints.save(live)
    jax.tree.map(lambda a: a.delete(), live.params)
    checkpoints.wait()
    found = checkpoints.load(state)
    assert found is not None and equal(found, wanted)


def test_a_half_written_checkpoint_is_not_one(state, tmp_path):
    checkpoints = Checkpoints(tmp_path / "train", every=1, keep=2)
    checkpoints.save(at(state, 3))
    checkpoints.wait()
    (tmp_path / "train" / "00000004").mkdir()
    assert checkpoints.steps() == [3]


def test_when_a_checkpoint_is_due(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=4, keep=1)
    assert [step for step in range(1, 11) if checkpoints.due(step, last=10)] == [4, 8, 10]
    with pytest.raises(ConfigError, match=r"checkpoint\.every=0"):
        Checkpoints(tmp_path, every=0, keep=1)


def test_weights_of_a_run_load_into_the_same_model_only(state, params, tmp_path):
    with pytest.raises(UpswingError, match="holds no checkpoint"):
        load_params(tmp_path, params)
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "warm_start", every=1, keep=1)
    checkpoints.save(at(state, 1))
    checkpoints.wait()
    loaded = load_params(tmp_path, params)
    assert np.array_equal(loaded["embed"], at(state, 1).params["embed"])
    wider = build(DecoderConfig(vocab_size=264, layers=2, width=64, heads=4, kv_heads=2, ffn=64, context=48))
    like = jax.eval_shape(wider.init, jax.random.key(0))
    like = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    with pytest.raises(UpswingError, match=r"'params/embed' has shape \(264, 32\), but the model expects \(264, 64\)"):
        load_params(tmp_path, like)
