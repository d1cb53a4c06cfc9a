import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.inference.sampler import Draw, DrawSettings, _first_above, draw, keep

draw_plain = jax.jit(lambda *args: draw(*args, truncate=False))
draw_truncated = jax.jit(lambda *args: draw(*args, truncate=True))
kept = jax.jit(keep)

ROWS, VOCABULARY = 4096, 70
"""More than two blocks of the vocabulary, and no whole number of them."""


def sample(
    logits: np.ndarray, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, truncate: bool = True
) -> Draw:
    """`ROWS` draws from the same logits, each with a seed of its own."""
    settings = DrawSettings(
        temperature=np.full(ROWS, temperature, np.float32),
        top_p=np.full(ROWS, top_p, np.float32),
        top_k=np.full(ROWS, top_k, np.int32),
        seed=np.arange(ROWS, dtype=np.uint32),
    )
    rows = np.broadcast_to(np.asarray(logits, np.float32), (ROWS, len(logits)))
    return (draw_truncated if truncate else draw_plain)(rows, settings, np.zeros(ROWS, np.int32))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return 1.5 * np.random.default_rng(0).normal(size=VOCABULARY)


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_follow_the_distribution(logits: np.ndarray, temperature: float, truncate: bool) -> None:
    drawn = sample(logits, temperature, truncate=truncate)
    expected = ROWS * np.exp(log_softmax(logits / temperature))
    rare = expected < 5
    observed = np.bincount(drawn.tokens, minlength=VOCABULARY).astype(float)
    pairs = [*zip(observed[~rare], expected[~rare], strict=True), (observed[rare].sum(), expected[rare].sum())]
    statistic = sum((o - e) ** 2 / e for o, e in pairs)
    freedom = len(pairs) - 1
    assert 30 < freedom < 70
    assert statistic < freedom + 3 * np.sqrt(2 * freedom), "three deviations of the chi-square distribution"
    np.testing.assert_allclose(drawn.logprobs, log_softmax(logits / temperature)[np.asarray(drawn.tokens)], atol=2e-6)


def test_positions_of_one_seed_are_independent_draws(logits: np.ndarray) -> None:
    settings = DrawSettings(*(np.full(ROWS, v, d) for v, d in ((1, "f4"), (1, "f4"), (0, "i4"), (7, "u4"))))
    rows = np.broadcast_to(logits.astype(np.float32), (ROWS, VOCABULARY))
    tokens = np.asarray(draw_plain(rows, settings, np.arange(ROWS, dtype=np.int32)).tokens)
    again = np.asarray(draw_plain(rows, settings, np.arange(ROWS, dtype=np.int32)[::-1].copy()).tokens)
    np.testing.assert_array_equal(again[::-1], tokens)
    chance = (np.exp(log_softmax(logits)) ** 2).sum()  # that two draws agree
    repeats = (tokens[1:] == tokens[:-1]).mean()
    assert abs(repeats - chance) < 4 * np.sqrt(chance / ROWS)


# Probabilities 0.3, 0.05, 0.5, 0.15.
FOUR = np.log([0.3, 0.05, 0.5, 0.15])


@pytest.mark.parametrize(
    ("top_p", "top_k", "tokens"),
    [
        (1.0, 0, {0, 1, 2, 3}),
        (1.0, 2, {0, 2}),
        (1.0, 1, {2}),
        (1.0, 99, {0, 1, 2, 3}),
        (0.49, 0, {2}),
        (0.51, 0, {0, 2}),
        (0.79, 0, {0, 2}),
        (0.81, 0, {0, 2, 3}),
        (0.96, 0, {0, 1, 2, 3}),
        (1e-9, 0, {2}),
        (0.0, 0, {2}),  # the likeliest always stays
        (0.82, 3, {0, 2}),  # of what top-k left, two have 0.8 / 0.95 = 0.84
        (0.85, 3, {0, 2, 3}),
    ],
)
def test_kept_by_hand(top_p: float, top_k: int, tokens: set[int]) -> None:
    mask = kept(FOUR[None].astype(np.float32), np.array([top_p], np.float32), np.array([top_k], np.int32))
    assert set(np.flatnonzero(mask[0])) == tokens
    drawn = sample(FOUR, 1.0, top_p, top_k)
    assert set(np.asarray(drawn.tokens).tolist()) == tokens
    # Exactly the distribution that is left, with all of its mass.
    left = np.where(np.asarray(mask[0]), FOUR, -np.inf)
    np.testing.assert_allclose(drawn.logprobs, log_softmax(left)[np.asarray(drawn.tokens)], atol=1e-6)


def test_kept_like_by_sorting() -> None:
    rng = np.random.default_rng(1)
    scaled = (3 * rng.normal(size=(ROWS, VOCABULARY))).astype(np.float32)
    top_p, top_k = rng.uniform(0, 1, ROWS).astype(np.float32), rng.integers(0, 80, ROWS).astype(np.int32)
    top_k[rng.random(ROWS) < 0.3] = 0
    found = np.asarray(kept(scaled, top_p, top_k))
    compared = 0
    for row in range(ROWS):
        order = np.argsort(-scaled[row])[: top_k[row] or VOCABULARY]
        mass = np.exp(scaled[row, order].astype(np.float64))
        before = (np.cumsum(mass) - mass) / mass.sum()
        if np.abs(before - top_p[row]).min() < 1e-6:
            continue  # too close for float32
        compared += 1
        assert set(np.flatnonzero(found[row])) == set(order[before < top_p[row]])
    assert compared > 0.99 * ROWS


def test_what_is_tied_with_the_last_one_kept_stays() -> None:
    ties = np.array([[0.0, 1.0, 1.0, -1.0]], np.float32)
    np.testing.assert_array_equal(
        kept(ties, np.ones(1, np.float32), np.ones(1, np.int32)), [[False, True, True, False]]
    )


def test_every_row_has_settings_of_its_own() -> None:
    logits = np.tile(FOUR, (4, 1)).astype(np.float32)
    settings = DrawSettings(
        temperature=np.array([0.0, 1.0, 0.5, 2.0], np.float32),
        top_p=np.array([1.0, 0.1, 1.0, 1.0], np.float32),
        top_k=np.array([0, 0, 2, 0], np.int32),
        seed=np.array([1, 2, 3, 4], np.uint32),
    )
    drawn = draw_truncated(logits, settings, np.zeros(4, np.int32))
    assert drawn.tokens[0] == drawn.tokens[1] == 2
    np.testing.assert_array_equal(drawn.logprobs[:2], [0.0, 0.0])
    at = np.asarray(drawn.tokens)
    squares = np.array([0.09, 0.0, 0.25, 0.0]) / 0.34  # temperature 0.5 squares probabilities
    assert drawn.logprobs[2] == pytest.approx(np.log(squares[at[2]]), abs=1e-6)
    assert drawn.logprobs[3] == pytest.approx(log_softmax(FOUR / 2)[at[3]], abs=1e-6)


@pytest.mark.parametrize("truncate", [False, True])
def test_greedy_takes_the_likeliest_and_is_certain(logits: np.ndarray, truncate: bool) -> None:
    drawn = sample(logits, 0.0, truncate=truncate)
    assert set(np.asarray(drawn.tokens).tolist()) == {int(logits.argmax())}
    np.testing.assert_array_equal(drawn.logprobs, np.zeros(ROWS))


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("possible", [[0], [69], [31, 32], [5, 40, 69], list(range(0, 70, 3))])
def test_what_has_no_mass_is_never_drawn(possible: list[int], truncate: bool) -> None:
    logits = np.full(VOCABULARY, -np.inf)
    logits[possible] = 0.0
    drawn = sample(logits, truncate=truncate)
    assert set(np.asarray(drawn.tokens).tolist()) == set(possible)
    np.testing.assert_allclose(drawn.logprobs, -np.log(len(possible)), atol=1e-6)


@pytest.mark.parametrize("size", [3, 32, 512])
def test_no_uniform_number_reaches_what_has_no_mass(size: int) -> None:
    rng = np.random.default_rng(size)
    mass = np.exp(3 * rng.normal(size=(ROWS, size))).astype(np.float32) * (rng.random((ROWS, size)) < 0.5)
    mass[:, size // 2] += 1e-3
    sums = np.asarray(jnp.cumsum(mass, axis=-1))
    at_a_step = sums[np.arange(ROWS), rng.integers(0, size, ROWS)] / sums[:, -1]
    for uniform in (
        np.zeros(ROWS),
        np.full(ROWS, 1 - 2**-24),
        at_a_step,
        np.nextafter(at_a_step, 0),
        np.nextafter(at_a_step, 1),
    ):
        index = np.asarray(jax.jit(_first_above)(mass, np.clip(uniform, 0, 1 - 2**-24).astype(np.float32)))
        assert (mass[np.arange(ROWS), index] > 0).all()
    np.testing.assert_array_equal(jax.jit(_first_above)(mass, np.zeros(ROWS, np.float32)), (mass > 0).argmax(axis=1))


def test_logits_of_any_size_are_drawn_from() -> None:
    drawn = sample(np.array([3e4, -3e4, 3e4 - 1.0]))
    assert set(np.asarray(drawn.tokens).tolist()) == {0, 2}
    np.testing.assert_allclose(np.unique(drawn.logprobs), [-1.3132617, -0.3132617], atol=1e-3)
