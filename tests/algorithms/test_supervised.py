import jax
import jax.numpy as jnp
import numpy as np

from rl.algorithms import Outcomes, supervised
from rl.data.pack import Segment, pack
from rl.ops.logprobs import TokenScores


def test_negative_log_likelihood_whatever_the_rewards() -> None:
    algorithm = supervised()
    batch = jax.device_put(pack([Segment([1, 2], [False, True], [0.0, 0.0], 5.0, 1)], row_length=2, rows_multiple=1))
    scores = TokenScores(jnp.array([[-7.0, -0.5]]), jnp.ones((1, 2)))
    token = algorithm.loss(scores, batch, {})
    np.testing.assert_array_equal(token.loss, [[7.0, 0.5]])
    assert float((algorithm.weights(batch) * token.loss).sum()) == 0.5
    assert (token.metrics, algorithm.hyper, algorithm.needs_reference) == ({}, {}, False)
    np.testing.assert_array_equal(
        algorithm.credit(Outcomes(np.ones((2, 3)), np.ones((2, 3), bool), np.ones((2, 3), int))), np.zeros((2, 3))
    )
