import jax.numpy as jnp
import numpy as np
import pytest

from rl.models.layers import project
from rl.models.turned import Turned


@pytest.mark.parametrize(("shape", "inputs"), [((6, 2, 4), 1), ((2, 3, 5), 2), ((6, 7), 1)])
def test_a_turned_matrix_multiplies_as_it_did(shape: tuple[int, ...], inputs: int) -> None:
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=shape), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, 3, *shape[:inputs])), jnp.float32)
    turned = Turned.of(matrix, inputs)
    assert turned.values.shape == (np.prod(shape[inputs:]), 6) and turned.shape == shape
    np.testing.assert_allclose(project(x, turned, inputs), project(x, matrix, inputs), atol=1e-5)
