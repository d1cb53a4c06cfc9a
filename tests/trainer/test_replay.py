"""Routing replay from engine to update: what is recorded, that it travels whole, and that the trainer goes that way."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pytest_asyncio

from envs import Environment, Rubric, Sampling, Task, Taskset, Trajectory, multi_turn, run_task
from envs.render import ByteRenderer
from rl.algorithms import grpo
from rl.data.pack import pack
from rl.data.routing import choices
from rl.inference.engine import Generation, TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.models.base import Model, Params
from rl.models.decoder import hidden_states
from rl.models.qwen3_moe import Qwen3MoeConfig, build
from rl.models.replay import chosen
from rl.ops.logprobs import TokenScores
from rl.rollout.client import EngineClient
from rl.rollout.journal import StepJournal
from rl.trainer.credit import credit
from rl.trainer.minibatches import scored
from rl.trainer.optimizer import adamw
from rl.trainer.reference import make_with_reference
from rl.trainer.state import init_state
from rl.trainer.update import make_score, make_update
from rl.types import Batch

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT = 32
CONFIG = Qwen3MoeConfig(
    **{"vocab_size": 264, "layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "context": CONTEXT},
    **{"experts": 6, "experts_per_token": 2, "expert_ffn": 8},
)


@pytest.fixture(scope="module", autouse=True)
def compiled_fast() -> Iterator[None]:
    """Nothing here runs long enough to be worth optimising."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def drawn(model: Model, seed: int) -> Params:
    """Weights whose routers are decided enough that rounding in float32 moves nothing, and whose experts differ."""
    rng = np.random.default_rng(seed)

    def one(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        wide = 1.5 if "router" in name else 1.0 if "ffn" in name else 0.25
        return jnp.asarray(rng.normal(1.0 if "scale" in name else 0.0, wide, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, jax.eval_shape(model.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def model() -> Model:
    return build(CONFIG)


@pytest.fixture(scope="module")
def old(model: Model) -> Params:
    return drawn(model, 0)


@pytest.fixture(scope="module")
def new(model: Model) -> Params:
    return drawn(model, 1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Model, old: Params) -> AsyncIterator[JaxEngine]:
    engine = JaxEngine(model, old, slots=4, lanes=1, tokens_per_dispatch=4, chunk=16, record_routing=True)
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def free(model: Model) -> Any:
    """`free(params, tokens) -> [tokens, layers, k]`: where tokens go in a forward pass that chooses."""

    def padded(params: Params, tokens: jax.Array) -> jax.Array:
        places = jnp.arange(CONTEXT)[None]
        _, observed = hidden_states(model, params, tokens, places, jnp.ones_like(tokens))
        return chosen(model, observed)[0]

    run = jax.jit(padded)

    def found(params: Params, tokens: Sequence[int]) -> np.ndarray:
        padding = np.zeros(CONTEXT - len(tokens), np.int32)
        return np.asarray(run(params, jnp.asarray(np.concatenate([tokens, padding]).astype(np.int32))[None]))[
            : len(tokens)
        ]

    return found


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def recorded(generation: Generation) -> np.ndarray:
    assert generation.routing is not None and generation.routing.first == 0
    assert len(generation.routing.choices) == np.prod(generation.routing.shape), "a byte each"
    return choices(generation.routing)


async def test_all_that_the_engine_read_or_drew_after_is_recorded(engine: JaxEngine, old: Params, free: Any) -> None:
    """Alone, in pieces, copied from a neighbour, and kept from the turn before."""
    first = prompt(16, 1)
    whole = await engine.generate(first, TokenSampling(max_tokens=4, seed=1))
    np.testing.assert_array_equal(recorded(whole), free(old, [*first, *whole.ids])[:-1])

    longer = [*first, *whole.ids, *prompt(4, 2)]
    kept, copied = await asyncio.gather(
        engine.generate(longer, TokenSampling(max_tokens=3, seed=2)),
        engine.generate(longer, TokenSampling(max_tokens=7, seed=3)),
    )
    assert kept.cached_tokens == 19 and copied.cached_tokens == 23
    for generation in (kept, copied):
        np.testing.assert_array_equal(recorded(generation), free(old, [*longer, *generation.ids])[:-1])

    await engine.flush_cache()
    pieces = [piece async for piece in engine.stream(longer, TokenSampling(max_tokens=7, seed=3))]
    assert len(pieces) > 1 and all(piece.routing is None for piece in pieces[:-1])
    np.testing.assert_array_equal(recorded(pieces[-1]), recorded(copied))


async def test_what_was_recorded_first_stays(engine: JaxEngine, old: Params, new: Params, free: Any) -> None:
    """Taken out and read anew with other weights: the tokens drawn before say where they went when they were drawn."""
    first = prompt(12, 4)
    pieces = []
    running = engine.stream(first, TokenSampling(max_tokens=20, seed=1))
    try:
        pieces.append(await anext(running))
        await engine.pause("retract")
        await engine.load_weights(new, 1)
        await engine.resume()
        pieces += [piece async for piece in running]
        ids = [i for piece in pieces for i in piece.ids]
        versions = [version for piece in pieces for version in piece.versions]
        before = len(first) + versions.index(1) - 1
        found = recorded(pieces[-1])
        assert len(found) == len(first) + len(ids) - 1 and len(first) < before < len(found)
        np.testing.assert_array_equal(found[:before], free(old, [*first, *ids])[:before])
        np.testing.assert_array_equal(found[before:], free(new, [*first, *ids])[before:-1])
        assert (found[:before] != free(new, [*first, *ids])[:before]).any()
    finally:
        await engine.load_weights(old, 0)


async def test_without_experts_there_is_nothing_to_record() -> None:
    from rl.models.base import DecoderConfig
    from rl.models.llama import build as dense

    model = dense(DecoderConfig(vocab_size=8, layers=1, width=8, heads=1, kv_heads=1, ffn=8, context=16))
    with pytest.raises(ValueError, match="is to be recorded, but the model has no experts"):
        JaxEngine(model, jax.jit(model.init)(jax.random.key(0)), slots=1, record_routing=True)


ECHO = Environment(
    Taskset({"train": [Task.ask("a", "abcdefgh"), Task.ask("b", "xy")]}),
    multi_turn(lambda rollout: "go on", max_turns=2),
    Rubric({}),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def group(engine: JaxEngine) -> list[Trajectory]:
    """Two turns each; every other one is worth something."""
    client = EngineClient(engine, ByteRenderer())
    found = []
    for i in range(4):
        t = await run_task(ECHO, ECHO.tasks[i % 2], client, sample=i, sampling=Sampling(max_tokens=5, seed=i))
        t.reward = float(i < 2)
        found.append(t)
    return found


@pytest.fixture(scope="module")
def batch(group: list[Trajectory]) -> Batch:
    parts = credit(grpo(), [group]).segments
    return pack(parts, row_length=CONTEXT, rows_multiple=2)


async def test_a_token_is_told_of_once(group: list[Trajectory]) -> None:
    for t in group:
        first, second = (turn.completion for turn in t.turns)
        assert first.prompt_ids and first.completion_ids and second.prompt_ids and second.completion_ids
        assert first.routing is not None and second.routing is not None
        read = len(first.prompt_ids) + len(first.completion_ids) - 1
        assert (first.routing.first, first.routing.shape) == (0, (read, 2, 2))
        whole = len(second.prompt_ids) + len(second.completion_ids) - 1
        assert (second.routing.first, second.routing.shape) == (read, (whole - read, 2, 2))


async def test_a_journal_keeps_what_was_recorded(group: list[Trajectory], tmp_path: Path) -> None:
    journal = StepJournal(tmp_path, 1)
    for t in group:
        journal.append(t)
    assert journal.done() == group
    journal.seal([group])
    assert journal.done() == group


async def test_the_batch_has_where_every_token_went(batch: Batch, old: Params, free: Any) -> None:
    assert batch.experts is not None and batch.experts.dtype == np.int16
    for row, experts, segment_ids in zip(batch.tokens, batch.experts, batch.segment_ids, strict=True):
        assert (experts[segment_ids == 0] == -1).all()
        for number in range(1, segment_ids.max() + 1):
            mine = segment_ids == number
            np.testing.assert_array_equal(experts[mine][:-1], free(old, row[mine])[:-1])
            assert (experts[mine][-1] == -1).all(), "nothing was drawn after it"


async def test_an_update_goes_where_the_sampler_went(model: Model, new: Params, batch: Batch, free: Any) -> None:
    """Though the trainer has other weights, and would send most tokens elsewhere."""
    assert batch.experts is not None
    mine = batch.segment_ids[0] == 1
    assert (free(new, batch.tokens[0][mine]) != batch.experts[0][mine]).mean() > 0.5
    batch = batch._replace(experts=np.where(batch.experts < 0, np.array([0, 1], np.int16), batch.experts))
    algorithm, optimizer = grpo(), adamw(lr=0.01, steps=1)
    update = make_update(make_score(model), algorithm, optimizer, 1)
    hyper = {**algorithm.hyper, **optimizer.hyper, "temperature": 1.0}
    after, metrics = jax.jit(update)(init_state(new, optimizer), batch, hyper)
    assert metrics["nonfinite"] == 0

    real = batch.experts[batch.segment_ids > 0]
    load = np.stack([np.bincount(real[:, layer].ravel(), minlength=6) for layer in range(2)])
    assert metrics["moe/max_load"] == pytest.approx((load.max(axis=1) / load.mean(axis=1)).mean(), rel=1e-6)
    router, before = (np.asarray(p["layers"]["ffn"]["router"]["weight"]) for p in (after.params, new))
    assert (np.abs(router - before).max(axis=(0, 1)) > 1e-3).sum() >= 4, "routers learn about experts they were given"


async def test_the_policy_is_scored_where_the_sampler_went_and_a_reference_where_it_goes(batch: Batch) -> None:
    def told(params: Params, few: Batch, temperature: float) -> TokenScores:
        went = jnp.full(few.tokens.shape, -9) if few.experts is None else few.experts[:, :, 1, 0]
        return TokenScores(went.astype(jnp.float32), None)

    assert batch.experts is not None
    found = scored(told, init_state({}, adamw(steps=1)), batch, {"temperature": 1.0}, None, 1)
    np.testing.assert_array_equal(found.proximal_logprobs, batch.experts[:, :, 1, 0])
    asked = make_with_reference(told, {}, 1, 1.0)(batch)
    assert (np.asarray(asked.reference_logprobs) == -9).all()
