"""The engine when it shares beginnings, reads in pieces and sizes its cache: the same tokens as with nothing of it."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence

import jax
import numpy as np
import pytest
import pytest_asyncio

from rl.data.pack import Segment, pack
from rl.inference.engine import Generation, TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.models.base import DecoderConfig, Model, Params
from rl.models.llama import build
from rl.trainer.update import make_score

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT = 400


@pytest.fixture(scope="module")
def long_model() -> Model:
    """One layer that sees 200 tokens, one that sees all."""
    return build(
        DecoderConfig(
            vocab_size=64, layers=2, width=32, heads=4, kv_heads=2, ffn=64, context=CONTEXT, windows=(200, None)
        )
    )


@pytest.fixture(scope="module")
def long_params(long_model: Model) -> Params:
    params = jax.jit(long_model.init)(jax.random.key(3))
    return {**params, "embed": 4 * params["embed"]}  # decided enough that rounding does not change the likeliest


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(long_model: Model, long_params: Params) -> AsyncIterator[JaxEngine]:
    engine = JaxEngine(long_model, long_params, slots=4, lanes=1, tokens_per_dispatch=4, chunk=32)
    yield engine
    await engine.close()


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 64, length).tolist()


def expected_logprobs(model: Model, params: Params, prompt: Sequence[int], generation: Generation) -> np.ndarray:
    count = len(generation.ids)
    segment = Segment(
        [*prompt, *generation.ids], [False] * len(prompt) + [True] * count, [0.0] * (len(prompt) + count), 0.0, count
    )
    batch = pack([segment], row_length=CONTEXT, rows_multiple=1)
    return np.asarray(jax.jit(make_score(model))(params, batch, 1.0).logprobs)[batch.mask]


async def test_turns_of_a_conversation_read_what_is_new(
    engine: JaxEngine, long_model: Model, long_params: Params
) -> None:
    so_far, cached = prompt(40, 1), []
    for turn in range(4):
        generation = await engine.generate(so_far, TokenSampling(max_tokens=20, seed=turn))
        cached.append(generation.cached_tokens)
        recomputed = expected_logprobs(long_model, long_params, so_far, generation)
        np.testing.assert_allclose(generation.logprobs, recomputed, atol=1e-5)
        so_far = [*so_far, *generation.ids, *prompt(10, 100 + turn)]
    # All of the turn before but the last token drawn, which was never read.
    assert cached == [0, 59, 89, 119]


async def test_a_long_prompt_grows_the_cache_and_holds_nobody_up(
    engine: JaxEngine, long_model: Model, long_params: Params
) -> None:
    pieces = []
    long = prompt(380, 2)
    running = engine.stream(prompt(5, 3), TokenSampling(max_tokens=200, seed=1))
    pieces.append(await anext(running))
    task = asyncio.create_task(engine.generate(long, TokenSampling(max_tokens=8, seed=1)))
    while not task.done():
        pieces.append(await anext(running))
    # 379 tokens in 12 pieces, 2 of them between two dispatches of 4 tokens; then two dispatches to draw its own 8.
    assert 7 <= len(pieces) <= 12 and pieces[-1].finish_reason is None
    await running.aclose()
    generation = await task
    np.testing.assert_allclose(
        generation.logprobs, expected_logprobs(long_model, long_params, long, generation), atol=1e-5
    )


async def test_whatever_is_in_flight_each_request_gets_its_own_tokens(engine: JaxEngine) -> None:
    rng = random.Random(5)
    stems = [prompt(60, seed) for seed in range(3)]
    asked = [
        (
            [*stems[rng.randrange(3)][: rng.choice((3, 20, 60))], *prompt(rng.randrange(1, 30), 50 + i)],
            rng.randrange(1, 30),
        )
        for i in range(24)
    ]
    alone: list[Generation] = []
    for tokens, count in asked:
        await engine.flush_cache()
        alone.append(await engine.generate(tokens, TokenSampling(0.0, max_tokens=count)))

    async def one(i: int) -> None:
        tokens, count = asked[i]
        await asyncio.sleep(rng.random() * 0.2)
        call = asyncio.create_task(engine.generate(tokens, TokenSampling(0.0, max_tokens=count), request_id=f"{i}"))
        fate = rng.choice(["wait", "wait", "abort", "cancel"])
        if fate == "cancel":
            await asyncio.sleep(rng.random() * 0.1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            return
        if fate == "abort":
            await asyncio.sleep(rng.random() * 0.1)
            await engine.abort(f"{i}")
        mine = await call
        assert mine.ids == alone[i].ids[: len(mine.ids)]
        assert mine.finish_reason == "abort" or mine.ids == alone[i].ids

    async def disturb() -> None:
        for mode in ("in_place", "retract", "in_place", "retract"):
            await asyncio.sleep(0.08)
            await engine.pause(mode)
            await engine.resume()

    await asyncio.wait_for(asyncio.gather(disturb(), *(one(i) for i in range(24)), *(one(i) for i in range(24))), 300)
    assert not any(lane.busy for lane in engine._lanes)
