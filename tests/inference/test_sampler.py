import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.inference.sampler import Draw, DrawSettings, _first_above, draw
from rl.inference.truncation import least_kept

drawn_from = jax.jit(draw)
least = jax.jit(least_kept)

ROWS, VOCABULARY = 4096, 70
"""More than two blocks of the vocabulary, and no whole number of them."""


def settings_of(rows: int, vocabulary: int, **given: object) -> DrawSettings:
    """Plain sampling, with what is given instead (a value for all rows, or one for each)."""
    plain = DrawSettings(
        temperature=np.ones(rows, np.float32),
        top_p=np.ones(rows, np.float32),
        top_k=np.zeros(rows, np.int32),
        min_p=np.zeros(rows, np.float32),
        seed=np.arange(rows, dtype=np.uint32),
        bias_ids=np.full((rows, 3), vocabulary, np.int32),
        biases=np.zeros((rows, 3), np.float32),
    )
    own = {
        name: np.broadcast_to(np.asarray(value, getattr(plain, name).dtype), getattr(plain, name).shape).copy()
        for name, value in given.items()
    }
    return plain._replace(**own)


def sample(logits: np.ndarray, *, banned: tuple[int, ...] = (), beside: bool = False, **given: object) -> Draw:
    """`ROWS` draws from the same logits, each with a seed of its own.

    Args:
        beside: one more row truncates, is biased and colder: what it asks for must not change the others.
    """
    rows = ROWS + beside
    settings = settings_of(rows, len(logits), **given)
    if beside:
        for values, own in zip(settings[:4], (0.5, 0.5, 2, 0.1), strict=True):
            values[-1] = own
    ban = np.full((rows, 2), len(logits), np.int32)
    ban[:, : len(banned)] = banned
    all_logits = np.broadcast_to(np.asarray(logits, np.float32), (rows, len(logits)))
    drawn = drawn_from(all_logits, settings, np.zeros(rows, np.int32), ban)
    return Draw(*(np.asarray(values)[:ROWS] for values in drawn))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return 1.5 * np.random.default_rng(0).normal(size=VOCABULARY)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_follow_the_distribution(logits: np.ndarray, temperature: float, beside: bool) -> None:
    drawn = sample(logits, temperature=temperature, beside=beside)
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
    settings, nothing = settings_of(ROWS, VOCABULARY, seed=7), np.full((ROWS, 1), VOCABULARY, np.int32)
    rows = np.broadcast_to(logits.astype(np.float32), (ROWS, VOCABULARY))
    tokens = np.asarray(drawn_from(rows, settings, np.arange(ROWS, dtype=np.int32), nothing).tokens)
    again = np.asarray(drawn_from(rows, settings, np.arange(ROWS, dtype=np.int32)[::-1].copy(), nothing).tokens)
    np.testing.assert_array_equal(again[::-1], tokens)
    chance = (np.exp(log_softmax(logits)) ** 2).sum()  # that two draws agree
    repeats = (tokens[1:] == tokens[:-1]).mean()
    assert abs(repeats - chance) < 4 * np.sqrt(chance / ROWS)


def kept(scaled: np.ndarray, top_p: object, top_k: object, min_p: object = 0.0) -> np.ndarray:
    rows = len(scaled)
    given = (np.broadcast_to(np.asarray(v, d), rows) for v, d in ((top_p, "f4"), (top_k, "i4"), (min_p, "f4")))
    return scaled >= np.asarray(least(scaled, *given))[:, None]


# Probabilities 0.3, 0.05, 0.5, 0.15.
FOUR = np.log([0.3, 0.05, 0.5, 0.15])


@pytest.mark.parametrize(
    ("top_p", "top_k", "min_p", "tokens"),
    [
        (1.0, 0, 0.0, {0, 1, 2, 3}),
        (1.0, 2, 0.0, {0, 2}),
        (1.0, 1, 0.0, {2}),
        (1.0, 99, 0.0, {0, 1, 2, 3}),
        (0.49, 0, 0.0, {2}),
        (0.51, 0, 0.0, {0, 2}),
        (0.79, 0, 0.0, {0, 2}),
        (0.81, 0, 0.0, {0, 2, 3}),
        (0.96, 0, 0.0, {0, 1, 2, 3}),
        (1e-9, 0, 0.0, {2}),
        (0.0, 0, 0.0, {2}),  # the likeliest always stays
        (0.82, 3, 0.0, {0, 2}),  # of what top-k left, two have 0.8 / 0.95 = 0.84
        (0.85, 3, 0.0, {0, 2, 3}),
        (1.0, 0, 0.09, {0, 1, 2, 3}),  # 0.05 / 0.5 = 0.1
        (1.0, 0, 0.11, {0, 2, 3}),
        (1.0, 0, 0.31, {0, 2}),
        (1.0, 0, 1.0, {2}),
        (0.49, 0, 0.11, {2}),  # whichever leaves least
        (0.96, 3, 0.31, {0, 2}),
    ],
)
def test_kept_by_hand(top_p: float, top_k: int, min_p: float, tokens: set[int]) -> None:
    mask = kept(FOUR[None].astype(np.float32), top_p, top_k, min_p)
    assert set(np.flatnonzero(mask[0])) == tokens
    drawn = sample(FOUR, top_p=top_p, top_k=top_k, min_p=min_p)
    assert set(drawn.tokens.tolist()) == tokens
    # Exactly the distribution that is left, with all of its mass; and the model's own beside it.
    np.testing.assert_allclose(drawn.logprobs, log_softmax(np.where(mask[0], FOUR, -np.inf))[drawn.tokens], atol=1e-6)
    np.testing.assert_allclose(drawn.plain_logprobs, FOUR[drawn.tokens], atol=1e-6)


def test_kept_like_by_sorting() -> None:
    rng = np.random.default_rng(1)
    scaled = (3 * rng.normal(size=(ROWS, VOCABULARY))).astype(np.float32)
    top_p, top_k = rng.uniform(0, 1, ROWS).astype(np.float32), rng.integers(0, 80, ROWS).astype(np.int32)
    min_p = rng.uniform(0, 0.2, ROWS).astype(np.float32)
    top_k[rng.random(ROWS) < 0.3] = 0
    top_p[rng.random(ROWS) < 0.3] = 2  # more than there is
    found = kept(scaled, top_p, top_k, min_p)
    compared = 0
    for row in range(ROWS):
        order = np.argsort(-scaled[row])[: top_k[row] or VOCABULARY]
        mass = np.exp(scaled[row, order].astype(np.float64))
        before, share = (np.cumsum(mass) - mass) / mass.sum(), mass / mass[0]
        if min(np.abs(before - top_p[row]).min(), np.abs(share - min_p[row]).min()) < 1e-6:
            continue  # too close for float32
        compared += 1
        assert set(np.flatnonzero(found[row])) == set(order[(before < top_p[row]) & (share >= min_p[row])])
    assert compared > 0.99 * ROWS


def test_what_is_tied_with_the_last_one_kept_stays() -> None:
    ties = np.array([[0.0, 1.0, 1.0, -1.0]], np.float32)
    np.testing.assert_array_equal(kept(ties, 1.0, 1), [[False, True, True, False]])


def test_every_row_has_settings_of_its_own() -> None:
    logits = np.tile(FOUR, (4, 1)).astype(np.float32)
    settings = settings_of(4, 4, temperature=[0.0, 1.0, 0.5, 2.0], top_p=[1.0, 0.1, 1.0, 1.0], top_k=[0, 0, 2, 0])
    drawn = drawn_from(logits, settings, np.zeros(4, np.int32), np.full((4, 1), 4, np.int32))
    assert drawn.tokens[0] == drawn.tokens[1] == 2
    np.testing.assert_array_equal(drawn.logprobs[:2], [0.0, 0.0])
    at = np.asarray(drawn.tokens)
    squares = np.array([0.09, 0.0, 0.25, 0.0]) / 0.34  # temperature 0.5 squares probabilities
    assert drawn.logprobs[2] == pytest.approx(np.log(squares[at[2]]), abs=1e-6)
    assert drawn.logprobs[3] == pytest.approx(log_softmax(FOUR / 2)[at[3]], abs=1e-6)
    np.testing.assert_allclose(drawn.plain_logprobs, FOUR[at], atol=1e-6)


def test_a_bias_is_added_before_temperature_and_truncation() -> None:
    # Probabilities 0.3, 0.05 * 16 = 0.8, 0.5, 0: over 1.6, and at temperature 0.5 their squares.
    given = {"bias_ids": [[1, 3, 4]], "biases": [[np.log(16), -np.inf, 0]], "temperature": 0.5}
    drawn = sample(FOUR, **given)
    expected = np.log(np.array([0.09, 0.64, 0.25]) / 0.98)
    assert set(drawn.tokens.tolist()) == {0, 1, 2}
    np.testing.assert_allclose(drawn.logprobs, expected[drawn.tokens], atol=1e-6)
    np.testing.assert_allclose(drawn.plain_logprobs, FOUR[drawn.tokens], atol=1e-6)
    assert set(sample(FOUR, **{**given, "temperature": 0.0}).tokens.tolist()) == {1}
    assert set(sample(FOUR, **given, top_k=2).tokens.tolist()) == {1, 2}


def test_what_is_banned_is_not_drawn_greedily_either() -> None:
    drawn = sample(FOUR, banned=(2, 3))
    assert set(drawn.tokens.tolist()) == {0, 1}
    np.testing.assert_allclose(drawn.logprobs, np.log(np.array([6, 1]) / 7)[drawn.tokens], atol=1e-6)
    np.testing.assert_allclose(drawn.plain_logprobs, FOUR[drawn.tokens], atol=1e-6)
    assert set(sample(FOUR, banned=(2,), temperature=0.0).tokens.tolist()) == {0}


def test_a_big_vocabulary_is_drawn_from_in_three_steps() -> None:
    vocabulary = 32 * 512 + 7
    logits = np.full(vocabulary, -np.inf)
    likely = [0, 31, 32, 1023, 1024, 9999, 16384, vocabulary - 1]
    logits[likely] = np.log([0.2, 0.05, 0.1, 0.15, 0.1, 0.1, 0.1, 0.2])
    drawn = sample(logits)
    observed = np.bincount(drawn.tokens, minlength=vocabulary)
    expected = ROWS * np.exp(logits)
    assert observed.sum() == observed[likely].sum() == ROWS
    statistic = ((observed[likely] - expected[likely]) ** 2 / expected[likely]).sum()
    assert statistic < 7 + 3 * np.sqrt(2 * 7), "three deviations of the chi-square distribution"
    np.testing.assert_allclose(drawn.logprobs, logits[drawn.tokens], atol=1e-6)


@pytest.mark.parametrize("beside", [False, True])
def test_greedy_takes_the_likeliest_and_is_certain(logits: np.ndarray, beside: bool) -> None:
    drawn = sample(logits, temperature=0.0, beside=beside)
    np.testing.assert_allclose(drawn.plain_logprobs, log_softmax(logits).max(), atol=1e-6)
    assert set(np.asarray(drawn.tokens).tolist()) == {int(logits.argmax())}
    np.testing.assert_array_equal(drawn.logprobs, np.zeros(ROWS))


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("possible", [[0], [69], [31, 32], [5, 40, 69], list(range(0, 70, 3))])
def test_what_has_no_mass_is_never_drawn(possible: list[int], beside: bool) -> None:
    logits = np.full(VOCABULARY, -np.inf)
    logits[possible] = 0.0
    drawn = sample(logits, beside=beside)
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
