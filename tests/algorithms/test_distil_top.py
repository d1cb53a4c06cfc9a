"""The divergence from a teacher on its likeliest tokens, in numbers worked out by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.algorithms import ALGORITHMS
from rl.algorithms.compose import specialised
from rl.algorithms.distillation import apart_on_top, distil
from rl.data.pack import Segment, pack
from rl.ops.logprobs import TokenScores, token_scores
from rl.types import Batch

# Of two tokens; what is left is 0.375 for the student and 0.25 for the teacher.
STUDENT, TEACHER = jnp.log(jnp.array([0.125, 0.5])), jnp.log(jnp.array([0.5, 0.25]))


@pytest.mark.parametrize(
    ("kind", "tail", "value", "slopes"),
    [
        # 0.5 ln 4 - 0.25 ln 2 + 0.25 ln(2/3); slopes -q_k + q_rest p_k / p_rest
        ("forward", "bucket", 0.418494, [-0.416667, 0.083333]),
        # -0.125 ln 4 + 0.5 ln 2 + 0.375 ln 1.5; slopes p_k (ln(p_k / q_k) - ln 1.5)
        ("reverse", "bucket", 0.325336, [-0.223970, 0.143841]),
        # of both from 0.3125, 0.375, 0.3125; slopes 0.5 p_k (ln(p_k / m_k) - ln 1.2)
        ("jensen_shannon", "bucket", 0.087763, [-0.068663, 0.026340]),
        # 2/3 and 1/3 against 0.2 and 0.8; slopes p - q
        ("forward", "drop", 0.510826, [-0.466667, 0.466667]),
        # 0.2 ln 0.3 + 0.8 ln 2.4; slopes p_k (ln(p_k / q_k) - the divergence)
        ("reverse", "drop", 0.459580, [-0.332711, 0.332711]),
    ],
)
def test_by_hand(kind: Any, tail: Any, value: float, slopes: list[float]) -> None:
    def apart(student: jax.Array, mixture: jax.Array) -> jax.Array:
        return apart_on_top(student, TEACHER, kind=kind, mixture=mixture, tail=tail)

    found, slope = jax.jit(jax.value_and_grad(apart))(STUDENT, 0.5)
    np.testing.assert_allclose(found, value, atol=2e-6)
    np.testing.assert_allclose(slope, slopes, atol=2e-6)
    assert abs(float(apart_on_top(TEACHER, TEACHER, kind=kind, mixture=0.3, tail=tail))) < 1e-7


def test_no_probability_is_left_over_and_none_at_all() -> None:
    sure, unlikely = jnp.array([0.0, -80.0]), jnp.array([-80.0, -80.0])
    for kind in ("forward", "reverse", "jensen_shannon"):
        for student, teacher in ((sure, unlikely), (unlikely, sure), (sure, sure), (unlikely, unlikely)):

            def apart(student: jax.Array, teacher: jax.Array = teacher, kind: Any = kind) -> jax.Array:
                return apart_on_top(student, teacher, kind=kind, mixture=0.5, tail="bucket")

            value, slope = jax.value_and_grad(apart)(student)
            assert np.isfinite(value) and np.isfinite(slope).all()


HIDDEN, HEAD, OTHER = (jax.random.normal(jax.random.key(i), (size, 4)) for i, size in enumerate((7, 11, 11)))


@pytest.mark.parametrize("chunk", [3, 1024])
def test_all_tokens_compared_are_the_whole_vocabulary(chunk: int) -> None:
    targets = jnp.arange(7)
    teacher = token_scores(HIDDEN, OTHER, targets, 0.7, chunk=chunk, top=11)
    logprobs = jax.nn.log_softmax(HIDDEN @ OTHER.T / 0.7)
    assert teacher.top_ids is not None
    np.testing.assert_array_equal(teacher.top_ids, np.argsort(-logprobs, axis=1))
    np.testing.assert_allclose(teacher.top_logprobs, -np.sort(-logprobs, axis=1), atol=1e-5)

    def on_top(head: jax.Array) -> jax.Array:
        ours = token_scores(HIDDEN, head, targets, 0.7, chunk=chunk, at=teacher.top_ids).top_logprobs
        return apart_on_top(ours, teacher.top_logprobs, kind="forward", mixture=0.5, tail="drop").sum()

    def whole(head: jax.Array) -> jax.Array:
        return distil(HIDDEN @ head.T, HIDDEN @ OTHER.T, mixture=0.0, temperature=0.7).sum()

    found, exact = jax.value_and_grad(on_top)(HEAD), jax.value_and_grad(whole)(HEAD)
    np.testing.assert_allclose(found[0], exact[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], exact[1], atol=1e-5)


def loss_of(algorithm: Any, advantage: float) -> tuple[np.ndarray, dict[str, Any]]:
    batch: Batch = jax.device_put(pack([Segment([1, 2], [False, True], [0.0, -1.0], advantage, 1)], 2, 1))
    there = jnp.broadcast_to(TEACHER, (1, 2, 2))
    batch = batch._replace(top_ids=jnp.zeros((1, 2, 2), jnp.int32), top_logprobs=there)
    scores = TokenScores(batch.behaviour_logprobs, None, top_logprobs=jnp.broadcast_to(STUDENT, (1, 2, 2)))
    token = algorithm.loss(scores, batch, {**algorithm.hyper, "version": 0})
    return np.asarray(token.loss)[0, 1], {name: float(value[0, 1]) for name, value in token.metrics.items()}


@pytest.mark.parametrize("name", ["opd", "sdft", "sdpo"])
def test_beside_it_rewards_count(name: str) -> None:
    loss = "distil_top" if name == "opd" else "distil_top_self"
    factory, taken = specialised(ALGORITHMS[name], {"loss": loss, "divergence": "reverse", "distil_weight": 2.0})
    algorithm = factory(**taken)
    assert algorithm.top == 16 and algorithm.needs_teacher == (name == "opd")
    value, metrics = loss_of(algorithm, advantage=3.0)
    np.testing.assert_allclose(value, 2 * 0.325336 - 3.0, rtol=1e-5)
    assert metrics["divergence_teacher"] == pytest.approx(0.325336, abs=1e-6)
    assert metrics["teacher_top"] == pytest.approx(0.75)


def test_settings_that_compare_nothing() -> None:
    with pytest.raises(ValueError, match="top is 0; expected at least 1"):
        ALGORITHMS["gkd"](top=0)
    with pytest.raises(ValueError, match=r"mixture is 1; expected a share above 0 and below 1.*divergence=reverse"):
        ALGORITHMS["gkd"](mixture=1.0)
    algorithm = ALGORITHMS["gkd"]()
    batch = jax.device_put(pack([Segment([1, 2], [False, True], [0.0, -1.0], 1.0, 1)], 2, 1))
    with pytest.raises(ValueError, match="compares with a teacher's likeliest tokens, but the batch has none"):
        algorithm.loss(TokenScores(batch.behaviour_logprobs, None), batch, {**algorithm.hyper, "version": 0})
