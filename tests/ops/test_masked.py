import jax
import jax.numpy as jnp
import numpy as np

from rl.ops.masked import masked_max, masked_sum

VALUES = jnp.array([[1.0, jnp.nan], [jnp.inf, -3.0]])
MASK = jnp.array([[True, False], [False, True]])


def test_what_lies_outside_may_be_anything() -> None:
    assert masked_sum(VALUES, MASK) == -2.0
    assert masked_max(jnp.abs(VALUES), MASK) == 3.0
    np.testing.assert_array_equal(jax.grad(masked_sum)(VALUES, MASK), [[1.0, 0.0], [0.0, 1.0]])


def test_nothing_to_sum_is_zero() -> None:
    assert masked_sum(VALUES, jnp.zeros_like(MASK)) == 0.0
    assert masked_max(VALUES, jnp.zeros_like(MASK)) == 0.0
