import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.ops.logprobs import TokenScores, token_scores

T, D, V = 13, 8, 37
rng = np.random.default_rng(0)
HIDDEN = rng.normal(size=(T, D)).astype(np.float32)
HEAD = rng.normal(size=(V, D)).astype(np.float32)
TARGETS = rng.integers(0, V, T).astype(np.int32)
UP, DOWN = rng.normal(size=(2, T))
"""Weights of the two outputs in the scalar that is differentiated."""


def reference(temperature: float) -> tuple[np.ndarray, ...]:
    """Log-probabilities, entropy, and the gradients of `UP @ logprobs + DOWN @ entropy`, in float64."""
    hidden, head = HIDDEN.astype(np.float64), HEAD.astype(np.float64)
    logits = hidden @ head.T / temperature
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    p = np.exp(logp)
    entropy = -(p * logp).sum(axis=1)
    onehot = np.eye(V)[TARGETS]
    slope = UP[:, None] * (onehot - p) - DOWN[:, None] * p * (logp + entropy[:, None])
    return logp[np.arange(T), TARGETS], entropy, slope @ head / temperature, slope.T @ hidden / temperature


@pytest.mark.parametrize("chunk", [1, 5, 1024])
def test_any_chunk_equals_a_float64_reference(chunk: int) -> None:
    def scalar(hidden: jax.Array, head: jax.Array, temperature: jax.Array) -> tuple[jax.Array, TokenScores]:
        scores = token_scores(hidden, head, jnp.asarray(TARGETS), temperature, chunk=chunk)
        return jnp.float32(UP) @ scores.logprobs + jnp.float32(DOWN) @ scores.entropy, scores

    run = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True))
    for temperature in (1.0, 0.7):
        (_, scores), (to_hidden, to_head) = run(HIDDEN, HEAD, jnp.float32(temperature))
        logprobs, entropy, hidden_gradient, head_gradient = reference(temperature)
        np.testing.assert_allclose(scores.logprobs, logprobs, rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(scores.entropy, entropy, atol=1e-5)
        for found, exact in ((to_hidden, hidden_gradient), (to_head, head_gradient)):
            assert np.linalg.norm(found - exact) < 5e-6 * np.linalg.norm(exact)


def test_by_hand() -> None:
    # Logits (0, ln 3): probabilities 1/4 and 3/4. At temperature 0.5 logits (0, ln 9): 1/10 and 9/10.
    hidden, head = jnp.ones((2, 1)), jnp.array([[0.0], [np.log(3.0)]], jnp.float32)
    scores = token_scores(hidden, head, jnp.array([0, 1]))
    np.testing.assert_allclose(scores.logprobs, [-1.3862944, -0.2876821], rtol=1e-6)
    np.testing.assert_allclose(scores.entropy, [0.5623351, 0.5623351], rtol=1e-6)
    np.testing.assert_allclose(
        token_scores(hidden, head, jnp.array([0, 1]), 0.5).logprobs, [-2.3025851, -0.1053605], rtol=1e-6
    )


def test_logits_of_any_size_stay_finite() -> None:
    hidden, head = jnp.ones((2, 1)), jnp.array([[3e4], [-3e4]])
    scores = token_scores(hidden, head, jnp.array([0, 1]))
    np.testing.assert_array_equal(scores.logprobs, [0.0, -6e4])
    np.testing.assert_array_equal(scores.entropy, [0.0, 0.0])


def test_bfloat16_inputs_are_scored_in_float32() -> None:
    hidden, head = jnp.asarray(HIDDEN, jnp.bfloat16), jnp.asarray(HEAD, jnp.bfloat16)
    run = jax.jit(token_scores)
    scores = run(hidden, head, TARGETS)
    exact = run(hidden.astype(jnp.float32), head.astype(jnp.float32), TARGETS)
    assert scores.logprobs.dtype == jnp.float32
    np.testing.assert_allclose(scores.logprobs, exact.logprobs, rtol=1e-5, atol=1e-5)


def test_neither_direction_holds_all_logits() -> None:
    tokens, vocabulary, chunk = 4096, 1024, 64
    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in (((tokens, 8), "f4"), ((vocabulary, 8), "f4"), ((tokens,), "i4"))]

    def total(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
        return token_scores(hidden, head, targets, chunk=chunk).logprobs.sum()

    compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * tokens * vocabulary / 8


@pytest.mark.parametrize("chunk", [3, 64])
def test_squared_probabilities(chunk: int) -> None:
    hidden, head = jax.random.normal(jax.random.key(0), (7, 5)), jax.random.normal(jax.random.key(1), (11, 5))
    targets = jnp.arange(7)
    found = token_scores(hidden, head, targets, 2.0, chunk=chunk, squares=True).squared_probs
    np.testing.assert_allclose(found, (jax.nn.softmax(hidden @ head.T / 2.0) ** 2).sum(axis=1), rtol=1e-5)
    assert token_scores(hidden, head, targets, chunk=chunk).squared_probs is None
