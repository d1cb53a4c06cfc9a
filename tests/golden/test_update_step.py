"""Two updates of a small decoder, in numbers: whatever moves them changes what everybody's training does.

When they move on purpose, the message of the commit says why; the new ones are what the failing test shows.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.algorithms import grpo
from rl.data.pack import Segment, pack
from rl.models.base import Model, Params
from rl.trainer.optimizer import adamw
from rl.trainer.state import init_state
from rl.trainer.update import make_score, make_update
from rl.types import Batch

ALGORITHM = grpo(clip_low=0.2, clip_high=0.28, aggregate="sequence_mean", kl_weight=0.05)
OPTIMIZER = adamw(lr=1e-3, schedule="cosine", warmup=2, weight_decay=0.1, max_grad_norm=0.5, steps=10)
HYPER = {**ALGORITHM.hyper, **OPTIMIZER.hyper, "temperature": 0.9}


def conversation(tokens: list[int], logprobs: dict[int, float], advantage: float, total: int, starts: bool) -> Segment:
    """A segment from its tokens and the log-probabilities of those that were sampled, by index."""
    sampled = [i in logprobs for i in range(len(tokens))]
    return Segment(tokens, sampled, [logprobs.get(i, 0.0) for i in range(len(tokens))], advantage, total, starts)


def batch() -> Batch:
    """Three rollouts in four rows of sixteen; the last rollout has two segments."""
    parts = [
        conversation([258, 104, 105, 256, 259, 111, 107, 256], {5: -5.9, 6: -6.4, 7: -5.2}, 1.25, 3, True),
        conversation([258, 97, 256, 259, 98, 256, 258, 99, 256, 259, 100], {4: -5.0, 5: -6.1, 10: -5.8}, -0.5, 3, True),
        conversation([258, 120, 256, 259, 121, 122], {4: -6.3, 5: -4.9}, -0.75, 4, True),
        conversation([257, 120, 121, 259, 122, 256], {4: -5.8, 5: -5.1}, -0.75, 4, False),
    ]
    packed = pack(parts, row_length=16, rows_multiple=4)
    reference = np.where(packed.mask, packed.behaviour_logprobs + 0.25, 0.0).astype(np.float32)
    return packed._replace(reference_logprobs=reference)


def waves(params: Params) -> Params:
    """Parameters of the same shapes that are a formula, and no draw of anybody's random numbers."""

    def wave(path: Any, like: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        values = np.sin(np.arange(like.size) ** 2 + len(name)) / 6 + ("scale" in name)
        return jnp.asarray(values.reshape(like.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(wave, params)


EXPECTED = [
    {
        "clip_fraction": 0.5,
        "entropy": 5.2956,
        "grad_norm": 7.025542,
        "kl_reference": 0.4814354,
        "loss": 0.2206063,
        "lr": 0.0005,
        "mismatch/abs": 0.7455267,
        "mismatch/k1": -0.1571336,
        "mismatch/k3": 0.4267031,
        "mismatch/max": 1.426761,
        "nonfinite": 0.0,
        "embed": [-0.1256986, -0.1112899],
        "q": [-0.1164512, 0.1286357],
        "down": [0.1393027, 0.1461714],
        "norm": [0.8392671, 0.8753354],
    },
    {
        "clip_fraction": 0.5,
        "entropy": 5.295259,
        "grad_norm": 4.306501,
        "kl_reference": 0.4358959,
        "loss": 0.02296054,
        "lr": 0.001,
        "mismatch/abs": 0.5981118,
        "mismatch/k1": -0.008292818,
        "mismatch/k3": 0.2830527,
        "mismatch/max": 1.404463,
        "nonfinite": 0.0,
        "embed": [-0.1247369, -0.1103946],
        "q": [-0.1154392, 0.1296037],
        "down": [0.1402805, 0.147154],
        "norm": [0.8382674, 0.8750056],
    },
]


def test_two_updates(model: Model, params: Params) -> None:
    quickly = {"xla_backend_optimization_level": 0}
    update = jax.jit(make_update(make_score(model), ALGORITHM, OPTIMIZER, microbatch_rows=2), compiler_options=quickly)
    state = init_state(waves(params), OPTIMIZER)
    for expected in EXPECTED:
        state, metrics = update(state, batch(), HYPER)
        weights = {
            "embed": state.params["embed"][256, :2],
            "q": state.params["layers"]["attention"]["q"][0, 3, 1, :2],
            "down": state.params["layers"]["ffn"]["down"][1, 5, :2],
            "norm": state.params["norm"]["scale"][:2],
        }
        found = {name: np.asarray(value).tolist() for name, value in {**metrics, **weights}.items()}
        assert found == {name: pytest.approx(value, rel=1e-5, abs=1e-7) for name, value in expected.items()}
