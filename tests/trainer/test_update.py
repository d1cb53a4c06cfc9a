"""What may not matter to an update, and what it does with numbers that are none.

Loss and gradient may not depend on how sequences are packed, how a batch is cut into micro-batches, or how many devices
share it. Every algorithm is held to that with a bigram table as its model, which compiles in a second; one of them also
with the decoder.
"""

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from rl.algorithms import ALGORITHMS, Algorithm, grpo, supervised
from rl.data.pack import Segment, pack
from rl.metrics import CompileCounter
from rl.models.base import Model, Params
from rl.ops.logprobs import TokenScores
from rl.parallel.mesh import batch_constraint, make_mesh, parameter_shardings, replicated
from rl.trainer.critic import init_critic, judge
from rl.trainer.optimizer import Optimizer, adamw
from rl.trainer.reference import make_with_reference
from rl.trainer.state import TrainState, init_state
from rl.trainer.update import Score, make_score, make_update
from rl.types import Batch

V = 11


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compiled quickly, for tests in which speed does not count."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def keep_gradient() -> Optimizer:
    """Leaves the parameters alone and shows the gradient it was given as its state."""

    def zeros(params: Params) -> Params:
        return jax.tree.map(jnp.zeros_like, params)

    transform = optax.GradientTransformation(zeros, lambda grads, state, params=None: (zeros(grads), grads))
    return Optimizer(lambda hyper: transform, lambda step, hyper: jnp.ones(()), {"max_grad_norm": 1e9})


def bigram_score(
    table: jax.Array, batch: Batch, temperature: jax.Array | float, critic: Params | None = None
) -> TokenScores:
    """Every token given the one before it: `table [V, V]` holds logits, and describes the state to a critic."""
    before = table[jnp.roll(batch.tokens, 1, axis=1)]
    logits = before / temperature
    logprobs = jax.nn.log_softmax(logits)
    entropy = -(jnp.exp(logprobs) * logprobs).sum(axis=-1)
    values = None if critic is None else judge(critic, before)
    return TokenScores(jnp.take_along_axis(logprobs, batch.tokens[..., None], axis=2)[..., 0], entropy, values=values)


TABLE = jax.random.normal(jax.random.key(3), (V, V))


def sequences(count: int, vocabulary: int, seed: int = 0) -> list[Segment]:
    """Sequences of 3 to 10 tokens, a third of them part of the rollout before them."""
    rng = np.random.default_rng(seed)
    parts: list[Segment] = []
    for n in range(count):
        size = int(rng.integers(3, 11))
        mask = [False, *(rng.random(size - 1) < 0.6).tolist()]
        logprobs = [float(p) if m else 0.0 for p, m in zip(-2.5 + 0.4 * rng.normal(size=size), mask, strict=True)]
        tokens = rng.integers(0, vocabulary, size).tolist()
        parts.append(Segment(tokens, mask, logprobs, float(rng.normal(loc=1.0)), sum(mask), starts_rollout=n % 3 != 1))
    for one, two in itertools.pairwise(parts):
        if not two.starts_rollout:
            total = sum(one.mask) + sum(two.mask)
            one.rollout_tokens = two.rollout_tokens = total
            two.advantage = one.advantage
    return parts


def packed(parts: Sequence[Segment], row_length: int = 16, rows: int = 8) -> Batch:
    """A batch of exactly this many rows, with reference log-probabilities that follow the tokens around."""
    batch = pack(parts, row_length, rows)
    assert batch.tokens.shape == (rows, row_length)
    sine = np.sin(batch.tokens, dtype=np.float32)
    return batch._replace(reference_logprobs=batch.behaviour_logprobs + 0.1 * sine, values=0.2 * sine, returns=1 - sine)


class Result(NamedTuple):
    loss: float
    gradient: Any
    metrics: dict[str, float]


Evaluate = Callable[[Params, Batch], Result]


def evaluate_with(
    score: Score, algorithm: Algorithm, rows: int = 8, constrain: Callable[[Batch], Batch] = lambda batch: batch
) -> Evaluate:
    """A compiled function from parameters and batch to what an update makes of them, `rows` at a time."""
    optimizer = keep_gradient()
    update = compiled(make_update(score, algorithm, optimizer, rows, constrain))
    hyper = {**algorithm.hyper, **optimizer.hyper, "temperature": 0.8}

    def evaluate(params: Params, batch: Batch) -> Result:
        critic = None
        if algorithm.critic is not None:
            critic = init_critic("shared", V, params)._replace(params={"weight": jnp.sin(jnp.arange(V)), "bias": 0.1})
        zeros = jax.tree.map(jnp.zeros_like, params)
        after, metrics = update(TrainState(params, zeros, jnp.int32(0), critic), batch, hyper)
        return Result(float(metrics["loss"]), jax.device_get(after.opt_state), jax.device_get(metrics))

    return evaluate


def assert_same(found: Result, expected: Result, rounding: float = 1e-6) -> None:
    """The loss in absolute terms to 1e-6, the gradient as a whole to `rounding`; metrics are means of float32 sums."""
    assert abs(found.loss - expected.loss) < 1e-6
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, found.gradient, expected.gradient))
    assert difference < rounding * optax.tree.norm(expected.gradient)
    assert found.metrics == {name: pytest.approx(value, rel=1e-5, abs=1e-6) for name, value in expected.metrics.items()}


def with_kl(name: str) -> Algorithm:
    """An algorithm by name, with a KL term if it can have one."""
    factory = ALGORITHMS[name]
    return factory(**{"kl_weight": 0.1} if "kl_weight" in inspect.signature(factory).parameters else {})


PARTS = sequences(12, V)


SHAPES = ["grpo", "gspo", "kl_cov", "ppo"]
"""One algorithm of each shape: tokens, sequences, the whole batch, a critic; tests/algorithms has all, without it."""


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest) -> tuple[Algorithm, Evaluate, Result]:
    """An algorithm, and what it makes of the sequences the plain way."""
    algorithm = with_kl(request.param)
    evaluate = evaluate_with(bigram_score, algorithm)
    result = evaluate(TABLE, packed(PARTS))
    assert np.linalg.norm(result.gradient) > 1e-3 and result.metrics["nonfinite"] == 0
    return algorithm, evaluate, result


def test_loss_and_gradient_are_the_definition_written_out() -> None:
    """Clipped surrogate and k3 over sequences one after the other, in float64."""
    parts, batch = PARTS, packed(PARTS)
    reference_of = dict(
        zip(
            batch.tokens[batch.mask].tolist(),
            (batch.reference_logprobs - batch.behaviour_logprobs)[batch.mask].tolist(),
            strict=True,
        )
    )
    table, rollouts = np.asarray(TABLE, np.float64), sum(p.starts_rollout and p.rollout_tokens > 0 for p in parts)
    loss, gradient = 0.0, np.zeros((V, V))
    for part in parts:
        for i in np.flatnonzero(part.mask):
            before, token = part.tokens[i - 1], part.tokens[i]
            p = np.exp(table[before] / 0.8) / np.exp(table[before] / 0.8).sum()
            ratio, distance = (
                p[token] / np.exp(part.logprobs[i]),
                part.logprobs[i] + reference_of[token] - np.log(p[token]),
            )
            bound = np.clip(ratio, 0.8, 1.2)
            weight = 1 / (rollouts * part.rollout_tokens)
            loss += weight * (
                max(-part.advantage * ratio, -part.advantage * bound) + 0.1 * (np.exp(distance) - 1 - distance)
            )
            steep = -part.advantage * ratio if -part.advantage * ratio >= -part.advantage * bound else 0.0
            slope = weight * (steep + 0.1 * (1 - np.exp(distance)))
            gradient[before] += slope * ((np.arange(V) == token) - p) / 0.8
    found = evaluate_with(bigram_score, grpo(aggregate="sequence_mean", kl_weight=0.1))(TABLE, batch)
    assert found.loss == pytest.approx(loss, abs=1e-6)
    assert np.linalg.norm(found.gradient - gradient) < 1e-6 * np.linalg.norm(gradient)


@settings(max_examples=20)
@given(order=st.permutations(PARTS), row_length=st.sampled_from([16, 23]))
def test_loss_and_gradient_do_not_depend_on_packing(
    case: tuple[Algorithm, Evaluate, Result], order: list[Segment], row_length: int
) -> None:
    _, evaluate, expected = case
    assert_same(evaluate(TABLE, packed(order, row_length)), expected)


def test_loss_and_gradient_do_not_depend_on_microbatches(case: tuple[Algorithm, Evaluate, Result]) -> None:
    algorithm, _, expected = case
    assert_same(evaluate_with(bigram_score, algorithm, rows=2)(TABLE, packed(PARTS)), expected)


def test_loss_and_gradient_do_not_depend_on_devices(case: tuple[Algorithm, Evaluate, Result]) -> None:
    algorithm, _, expected = case
    mesh = make_mesh({"data": 8})
    rows = NamedSharding(mesh, PartitionSpec("data"))
    batch = jax.tree.map(lambda a: jax.device_put(a, rows) if a.ndim else replicated(mesh, a), packed(PARTS))
    assert [s.data.shape for s in batch.tokens.addressable_shards] == [(1, 16)] * 8
    evaluate = evaluate_with(bigram_score, algorithm, constrain=batch_constraint(mesh, {"batch": "data"}))
    assert_same(evaluate(replicated(mesh, TABLE), batch), expected)


# The same with the decoder, whose attention has to keep packed sequences apart.

ROUNDING = 2e-6
"""Two compiled programs for the decoder's gradient differ by 0.6e-6 to 1.2e-6, whatever its width and the batch."""
GRPO = grpo(kl_weight=0.1)


@pytest.fixture(scope="module")
def words(model: Model, params: Params) -> list[Segment]:
    """Sequences with the log-probabilities that the model itself gives them, one by one."""
    parts, score = sequences(12, 264, seed=1), compiled(make_score(model))
    for part in parts:
        alone = score(params, pack([part], 10, 1), 0.8).logprobs[0].tolist()
        part.logprobs = [p if m else 0.0 for p, m in zip(alone, part.mask, strict=False)]
    return parts


@pytest.fixture(scope="module")
def decoded(model: Model, params: Params, words: list[Segment]) -> Result:
    return evaluate_with(make_score(model), GRPO)(params, packed(words))


def test_decoder_with_other_packing_and_microbatches(
    model: Model, params: Params, words: list[Segment], decoded: Result
) -> None:
    evaluate = evaluate_with(make_score(model), GRPO, rows=2)
    assert_same(evaluate(params, packed(words[::-1], row_length=21)), decoded, ROUNDING)


def test_decoder_on_eight_devices(model: Model, params: Params, words: list[Segment], decoded: Result) -> None:
    mesh, rules = make_mesh({"data": 2, "fsdp": 4}), {"batch": "data", "embed": "fsdp"}
    sharded = jax.device_put(params, parameter_shardings(mesh, model.axes, rules))
    assert [s.data.shape for s in sharded["embed"].addressable_shards] == [(264, 8)] * 8
    evaluate = evaluate_with(make_score(model), GRPO, constrain=batch_constraint(mesh, rules))
    assert_same(evaluate(sharded, packed(words)), decoded, ROUNDING)


def test_decoder_with_recomputed_activations(
    model: Model, params: Params, words: list[Segment], decoded: Result
) -> None:
    assert_same(evaluate_with(make_score(model, remat=True), GRPO)(params, packed(words)), decoded, ROUNDING)


def test_logprobs_under_a_reference(model: Model, params: Params, words: list[Segment]) -> None:
    batch = packed(words)
    found = make_with_reference(make_score(model), params, rows=2, temperature=0.8)(batch).reference_logprobs
    np.testing.assert_allclose(found[batch.mask], batch.behaviour_logprobs[batch.mask], atol=1e-5)
    assert (found[:, 0] == 0).all(), "nothing comes before the first column"


def test_the_likeliest_tokens_of_a_teacher_are_scored_by_the_policy(
    model: Model, params: Params, words: list[Segment]
) -> None:
    batch = make_with_reference(make_score(model, top=3), params, rows=2, temperature=0.8)(packed(words))
    assert batch.top_ids is not None and batch.top_logprobs is not None
    assert batch.top_ids.shape == batch.top_logprobs.shape == (*batch.tokens.shape, 3)
    scores = jax.jit(make_score(model))(params, batch, 0.8)
    assert scores.top_ids is None and scores.top_logprobs is not None
    np.testing.assert_allclose(scores.top_logprobs, batch.top_logprobs, atol=1e-5)
    np.testing.assert_allclose(scores.logprobs, batch.reference_logprobs, atol=1e-5)


# What an update does with its numbers, seen with the bigram table.

BATCH = packed(PARTS)
ALGORITHM = grpo()
ADAMW = adamw(lr=0.1, steps=10)
HYPER = {**ALGORITHM.hyper, **ADAMW.hyper, "temperature": 1.0}


@pytest.fixture(scope="module")
def update() -> Any:
    return compiled(make_update(bigram_score, ALGORITHM, ADAMW, 4))


def bits(state: TrainState) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def trained(update: Any) -> TrainState:
    """A state with momentum in it."""
    state, _ = update(init_state(TABLE, ADAMW), BATCH, HYPER)
    return state


@pytest.mark.parametrize(
    ("field", "poison"),
    [
        ("advantages", np.nan),
        ("advantages", np.inf),
        ("advantages", -np.inf),
        ("behaviour_logprobs", np.nan),
        ("behaviour_logprobs", -np.inf),
    ],
)
def test_a_loss_that_is_no_number_changes_no_bit(update: Any, trained: TrainState, field: str, poison: float) -> None:
    values = getattr(BATCH, field).copy()
    values[tuple(np.argwhere(BATCH.mask)[7])] = poison
    after, metrics = update(trained, BATCH._replace(**{field: values}), HYPER)
    assert metrics["nonfinite"] == 1
    assert bits(after) == bits(trained)
    again, metrics = update(after, BATCH, HYPER)
    assert metrics["nonfinite"] == 0 and again.step == trained.step + 1


def test_a_gradient_that_is_no_number_changes_no_bit() -> None:
    def score(table: jax.Array, batch: Batch, temperature: jax.Array | float) -> TokenScores:
        scores = bigram_score(table, batch, temperature)
        return scores._replace(logprobs=scores.logprobs - jnp.sqrt(jnp.abs(table[0, 0])))  # infinitely steep at 0

    state = init_state(TABLE.at[0, 0].set(0.0), ADAMW)
    after, metrics = compiled(make_update(score, ALGORITHM, ADAMW, 4))(state, BATCH, HYPER)
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"]) and metrics["nonfinite"] == 1
    assert bits(after) == bits(state)


def test_what_lies_outside_the_mask_may_hold_anything(update: Any, trained: TrainState) -> None:
    noise = np.where(BATCH.mask, BATCH.behaviour_logprobs, np.nan)
    expected, _ = update(trained, BATCH, HYPER)
    found, metrics = update(trained, BATCH._replace(behaviour_logprobs=noise), HYPER)
    assert metrics["nonfinite"] == 0 and bits(found) == bits(expected)


def test_the_step_and_its_metrics(update: Any) -> None:
    state, metrics = update(init_state(TABLE, ADAMW), BATCH, HYPER)
    assert state.step == 1 and metrics["lr"] == pytest.approx(0.1)
    scores = bigram_score(TABLE, jax.device_put(BATCH), 1.0)
    assert metrics["entropy"] == pytest.approx(float(scores.entropy[BATCH.mask].mean()), rel=1e-5)
    mismatch = np.abs(scores.logprobs - BATCH.behaviour_logprobs)[BATCH.mask]
    assert metrics["mismatch/abs"] == pytest.approx(float(mismatch.mean()), rel=1e-5)
    assert metrics["mismatch/max"] == pytest.approx(float(mismatch.max()), rel=1e-5)
    # Adam's first step is the sign of the gradient: every logit that any trained token depends on moves by lr.
    moved = np.abs(np.asarray(state.params) - np.asarray(TABLE))
    assert np.isclose(moved, 0.1, atol=1e-3).sum() > 100 and moved.max() < 0.1001


def test_long_gradients_are_cut_and_reported_whole() -> None:
    optimizer = keep_gradient()
    update = compiled(make_update(bigram_score, ALGORITHM, optimizer, 8))
    state = TrainState(TABLE, jnp.zeros_like(TABLE), jnp.int32(0))
    whole, metrics = update(state, BATCH, {**HYPER, "max_grad_norm": 1e9})
    norm = float(np.linalg.norm(whole.opt_state))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)
    cut, metrics = update(state, BATCH, {**HYPER, "max_grad_norm": norm / 4})
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)
    np.testing.assert_allclose(cut.opt_state, whole.opt_state / 4, rtol=1e-5)
    short, _ = update(state, BATCH, {**HYPER, "max_grad_norm": norm * 4})
    np.testing.assert_array_equal(short.opt_state, whole.opt_state)


def test_other_numbers_compile_nothing(update: Any, trained: TrainState) -> None:
    counter = CompileCounter()
    for factor in (0.5, 2.0):
        update(trained, BATCH, {name: factor * value for name, value in HYPER.items()})
    counter.close()
    assert counter.count == 0


def test_nothing_to_train_on_is_no_accident(update: Any, trained: TrainState) -> None:
    nothing = BATCH._replace(mask=np.zeros_like(BATCH.mask), rollouts=np.int32(0))
    for batch in (nothing, nothing._replace(segment_ids=np.zeros_like(BATCH.segment_ids))):
        after, metrics = update(trained, batch, HYPER)
        assert (metrics["loss"], metrics["grad_norm"], metrics["nonfinite"]) == (0, 0, 0)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_supervised_updates_make_demonstrations_likelier() -> None:
    algorithm, optimizer = supervised(), adamw(lr=0.3, steps=20)
    update = compiled(make_update(bigram_score, algorithm, optimizer, 8))
    state, losses = init_state(TABLE, optimizer), []
    for _ in range(20):
        state, metrics = update(state, BATCH, {**algorithm.hyper, **optimizer.hyper, "temperature": 1.0})
        losses.append(float(metrics["loss"]))
    assert losses[0] > 2.5 and losses[-1] < 2.0 and losses == sorted(losses, reverse=True)


def test_a_moving_average_follows_by_a_share_of_the_way(update: Any) -> None:
    hyper = {**HYPER, "teacher_rate": 0.25}
    first = init_state(TABLE, ADAMW, averaged=True)
    average = np.asarray(TABLE)
    for _ in range(2):
        first, _ = update(first, BATCH, hyper)
        assert first.average is not None
        average = average + 0.25 * (np.asarray(first.params) - average)
        np.testing.assert_allclose(first.average, average, rtol=1e-6, atol=1e-7)
    assert np.abs(average - np.asarray(first.params)).max() > 0.01
    assert update(init_state(TABLE, ADAMW), BATCH, HYPER)[0].average is None
