"""The numbers an optimizer makes, and the state it begins with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.trainer.optimizer import Optimizer, adamw
from rl.trainer.state import global_norm, init_state, parameter_count


def rates(optimizer: Optimizer, steps: range) -> list[float]:
    return [float(optimizer.lr(jnp.int32(step), optimizer.hyper)) for step in steps]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]),
        ("wsd", [0.5, 1.0, 1.0, 1.0, 1.0, 0.6, 0.2]),  # falls over 2 / 7 of 7 updates
        ("cosine", [0.5, 1.0, 1.0, 0.8828427, 0.6, 0.3171573, 0.2]),  # 0.2 + 0.8 (1 + cos(k pi / 4)) / 2
    ],
)
def test_schedules_warm_up_and_end_at_the_last_update(schedule: str, expected: list[float]) -> None:
    optimizer = adamw(lr=1.0, schedule=schedule, warmup=2, final_lr=0.2, decay=2 / 7, steps=7)
    np.testing.assert_allclose(rates(optimizer, range(7)), expected, rtol=1e-6)


def test_without_warm_up_the_first_update_has_the_whole_rate() -> None:
    assert rates(adamw(lr=3e-4, steps=4), range(2)) == [pytest.approx(3e-4), pytest.approx(3e-4)]


def test_another_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule is 'step'; expected one of constant, linear, cosine, wsd"):
        adamw(schedule="step", steps=1)


PARAMS = {"w": jnp.array([1.0, -2.0, 0.5]), "norm": {"scale": jnp.array([1.0])}}
GRADS = {"w": jnp.array([0.3, -0.02, 0.0]), "norm": {"scale": jnp.array([-4.0])}}


def test_two_updates_of_adam_by_hand() -> None:
    optimizer = adamw(b1=0.9, b2=0.95, eps=0.1, weight_decay=0.5, steps=9)
    with jax.numpy_dtype_promotion("standard"):
        transform = optimizer.transform(optimizer.hyper)
        first, state = transform.update(GRADS, transform.init(PARAMS), PARAMS)
        second, _ = transform.update({"w": -GRADS["w"], "norm": GRADS["norm"]}, state, PARAMS)
    # g / (|g| + eps) + 0.5 w; scales do not decay.
    np.testing.assert_allclose(first["w"], [0.75 + 0.5, -0.02 / 0.12 - 1.0, 0.25], rtol=1e-5)
    np.testing.assert_allclose(first["norm"]["scale"], [-4 / 4.1], rtol=1e-5)
    # m = (0.9 * 0.1 - 0.1) g = -0.01 g, unbiased by 0.19; v is g squared.
    np.testing.assert_allclose(
        second["w"], [-0.01 / 0.19 * 0.75 + 0.5, 0.01 / 0.19 * 0.02 / 0.12 - 1.0, 0.25], rtol=1e-4
    )
    np.testing.assert_allclose(second["norm"]["scale"], [-4 / 4.1], rtol=1e-5)


def test_the_first_state() -> None:
    state = init_state(PARAMS, adamw(steps=1))
    assert state.step == 0 and state.step.dtype == jnp.int32
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(state.opt_state))
    assert parameter_count(PARAMS) == 4
    assert float(global_norm({"a": jnp.array([3.0]), "b": jnp.array([[4.0]])})) == 5.0
