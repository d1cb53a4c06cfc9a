"""The engine that samples during training, with a small model: two lanes of four slots, a context of 48."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence

import jax
import numpy as np
import pytest
import pytest_asyncio

from envs import (
    ContextLengthError,
    Environment,
    InfrastructureError,
    Rubric,
    Sampling,
    Task,
    Taskset,
    Trajectory,
    multi_turn,
    run_task,
)
from envs.render import ByteRenderer
from rl.data.pack import Segment, pack
from rl.inference.engine import EngineBusyError, EngineError, Generation, PauseMode, TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.metrics import CompileCounter
from rl.models.base import Model, Params
from rl.rollout.client import EngineClient
from rl.trainer.update import make_score
from rl.types import Batch

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT = 48
PROMPT = [5, 6, 7, 8, 9, 10]


def prompt(length: int) -> list[int]:
    return [(7 * i) % 256 for i in range(length)]


def spelled(ids: Sequence[int]) -> str:
    return "".join(f"<{i}>" for i in ids)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Model, params: Params) -> AsyncIterator[JaxEngine]:
    engine = JaxEngine(
        model, params, slots=8, lanes=2, tokens_per_dispatch=4, chunk=32, exact=True, text_of=spelled, max_waiting=16
    )
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def other_params(model: Model) -> Params:
    return jax.jit(model.init)(jax.random.key(1))


@pytest.fixture(scope="module")
def score(model: Model):
    return jax.jit(make_score(model))


async def turns_of_the_loop() -> None:
    """Lets everything that is ready run: requests queue up and a dispatch begins."""
    for _ in range(20):
        await asyncio.sleep(0)


async def soon(awaitable: Awaitable[Generation]) -> Generation:
    return await asyncio.wait_for(awaitable, 60)


def batch_of(prompts: Sequence[list[int]], generations: Sequence[Generation]) -> Batch:
    parts = [
        Segment([*p, *g.ids], [False] * len(p) + [True] * len(g.ids), [0.0] * len(p) + g.logprobs, 0.0, len(g.ids))
        for p, g in zip(prompts, generations, strict=True)
    ]
    return pack(parts, row_length=CONTEXT, rows_multiple=8)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_equal_the_trainers(engine: JaxEngine, params: Params, score, temperature: float) -> None:
    prompts = [prompt(n) for n in (1, 2, 6, 16, 17, 18, 33, 47)]
    requests = (engine.generate(p, TokenSampling(temperature, max_tokens=20, seed=i)) for i, p in enumerate(prompts))
    generations = await asyncio.gather(*requests)
    assert [len(g.ids) for g in generations] == [20, 20, 20, 20, 20, 20, 15, 1]
    batch = batch_of(prompts, generations)
    recomputed = np.asarray(score(params, batch, temperature).logprobs)
    np.testing.assert_allclose(batch.behaviour_logprobs[batch.mask], recomputed[batch.mask], atol=1e-5)
    assert batch.behaviour_logprobs[batch.mask].std() > 0.1


async def test_what_a_request_draws_depends_on_nothing_else(engine: JaxEngine) -> None:
    mine = TokenSampling(max_tokens=20, seed=3)

    def others(count: int, tokens: int) -> list[asyncio.Task[Generation]]:
        return [
            asyncio.create_task(engine.generate(prompt(5 + 3 * i), TokenSampling(max_tokens=tokens, seed=i)))
            for i in range(count)
        ]

    alone = await engine.generate(PROMPT, mine)
    assert len(alone.ids) == 20
    for count, tokens in ((1, 40), (2, 3), (7, 20), (12, 9)):
        before = others(count, tokens)
        assert await engine.generate(PROMPT, mine) == alone, "in another slot, after others"
        late = others(5, 40)
        await turns_of_the_loop()
        assert await engine.generate(PROMPT, mine) == alone, "admitted while others are being drawn"
        await asyncio.gather(*before, *late)
    same = await asyncio.gather(*(engine.generate(PROMPT, mine) for _ in range(8)))
    assert same == [alone] * 8, "in all slots at once"
    assert (await engine.generate(PROMPT, TokenSampling(max_tokens=20, seed=4))).ids != alone.ids


async def test_a_neighbour_that_truncates_changes_nothing(engine: JaxEngine) -> None:
    mine = TokenSampling(max_tokens=20, seed=3)
    alone = await engine.generate(PROMPT, mine)
    truncated = engine.generate(PROMPT, TokenSampling(top_k=2, max_tokens=30, seed=3))
    other, beside = await asyncio.gather(truncated, engine.generate(PROMPT, mine))
    assert beside == alone
    assert other.ids[:20] != alone.ids and max(other.logprobs) <= 0 and min(other.logprobs) > -5


async def test_a_group_is_read_once(engine: JaxEngine) -> None:
    read = engine._programs.read
    calls = 0

    def counted(*args: object) -> object:
        nonlocal calls
        calls += 1
        return read(*args)

    engine._programs.read = counted
    try:
        await engine.flush_cache()
        group = await asyncio.gather(*(engine.generate(PROMPT, TokenSampling(max_tokens=2, seed=i)) for i in range(4)))
        assert calls == 1 and [g.cached_tokens for g in group] == [0, 5, 5, 5]
        await asyncio.gather(*(engine.generate([*PROMPT, i], TokenSampling(max_tokens=2)) for i in range(4)))
        assert calls == 2, "prompts that differ in their last token alone share it too"
        await asyncio.gather(*(engine.generate([i, *PROMPT], TokenSampling(max_tokens=2)) for i in range(4)))
        assert calls == 4, "four different prompts, two in each lane"
        assert (await engine.generate([1, *PROMPT], TokenSampling(max_tokens=2))).cached_tokens == 6
        await engine.generate([5], TokenSampling(max_tokens=2))
        assert calls == 4, "a prompt that was read before, and one token, which is read as it is decoded"
        await engine.flush_cache()
        assert (await engine.generate([1, *PROMPT], TokenSampling(max_tokens=2))).cached_tokens == 0
        assert calls == 5
    finally:
        engine._programs.read = read


async def test_nothing_compiles_in_steady_state(engine: JaxEngine) -> None:
    async def everything(seed: int) -> None:
        for length in (1, 3, 17, 40):
            group = (
                engine.generate(prompt(length), TokenSampling(0.7, max_tokens=4, seed=i + seed)) for i in range(10)
            )
            await asyncio.gather(*group)
        await engine.generate(PROMPT, TokenSampling(top_p=0.9, max_tokens=3, stop_ids=(1, 2), seed=seed))

    await everything(0)
    counter, before = CompileCounter(), engine.compiled_programs()
    await everything(100)
    counter.close()
    assert (engine.compiled_programs(), counter.count) == (before, 0)


async def test_the_context_ends_a_completion_and_bounds_a_prompt(engine: JaxEngine) -> None:
    assert engine.context == CONTEXT
    full = await engine.generate(prompt(40), TokenSampling(max_tokens=100))
    assert (len(full.ids), len(full.logprobs), full.versions, full.finish_reason) == (8, 8, [0] * 8, "length")
    expected = (
        r"the prompt has 48 tokens, but a prompt needs 1 … 47 to leave room in the engine's context of 48; shorten"
    )
    with pytest.raises(ContextLengthError, match=expected):
        await engine.generate(prompt(48), TokenSampling())
    with pytest.raises(ContextLengthError, match="the prompt has 0 tokens"):
        await engine.generate([], TokenSampling())


async def test_a_conversation_that_outgrows_the_context_is_scored_and_a_prompt_that_never_fits_is_refused(
    engine: JaxEngine,
) -> None:
    def turns(trajectory: Trajectory) -> float:
        return float(len(trajectory.turns))

    client = EngineClient(engine, ByteRenderer())
    chat = multi_turn(lambda rollout: "go on", max_turns=99)
    environment = Environment(Taskset({"train": [Task.ask("a", "Hi")]}), chat, Rubric({turns: 1.0}))
    sampling = Sampling(max_tokens=6, seed=1)
    trajectory = await run_task(environment, environment.tasks[0], client, sampling=sampling)
    last = trajectory.turns[-1].completion
    assert last.prompt_ids is not None and last.completion_ids is not None
    assert (trajectory.stop, trajectory.failure) == ("context_length", None)
    assert trajectory.reward == len(trajectory.turns) > 1
    assert len(last.prompt_ids) + len(last.completion_ids) <= CONTEXT
    with pytest.raises(ContextLengthError, match="the prompt has 103 tokens"):
        await run_task(environment, Task.ask("b", "x" * 100), client, sampling=sampling)


async def test_stop_tokens_end_a_completion_and_are_part_of_it(engine: JaxEngine) -> None:
    free = await engine.generate(PROMPT, TokenSampling(max_tokens=12, seed=1))
    assert free.finish_reason == "length"
    stop = free.ids[5]
    end = free.ids.index(stop) + 1
    stopped = await engine.generate(PROMPT, TokenSampling(max_tokens=12, seed=1, stop_ids=(263, stop)))
    assert (stopped.ids, stopped.logprobs, stopped.finish_reason) == (free.ids[:end], free.logprobs[:end], "stop")
    with pytest.raises(ValueError, match="9 stop ids; at most 8 fit"):
        await engine.generate(PROMPT, TokenSampling(stop_ids=tuple(range(9))))


async def test_greedy_takes_the_likeliest_every_time(engine: JaxEngine, params: Params, score) -> None:
    greedy = await engine.generate(PROMPT, TokenSampling(0.0, max_tokens=6, seed=1))
    assert greedy.ids == (await engine.generate(PROMPT, TokenSampling(0.0, max_tokens=6, seed=2))).ids
    assert greedy.logprobs == [0.0] * 6
    # Eight candidates for the last token, with the one it drew among them: none scores better.
    last = [greedy.ids[-1], *(i for i in range(0, 264, 37) if i != greedy.ids[-1])][:8]
    batch = batch_of([[*PROMPT, *greedy.ids[:-1]]] * 8, [Generation([i], [0.0], [0.0], [0], "length") for i in last])
    scores = dict(
        zip(batch.tokens[batch.mask].tolist(), score(params, batch, 1.0).logprobs[batch.mask].tolist(), strict=True)
    )
    assert max(scores, key=scores.__getitem__) == greedy.ids[-1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; expected 0 or more"),
        ({"top_p": 1.5}, "top_p is 1.5; expected 0 … 1"),
        ({"top_k": -1}, "top_k is -1; expected 0 or more"),
        ({"min_p": 2.0}, "min_p is 2.0; expected 0 … 1"),
        ({"max_tokens": 0}, "max_tokens is 0; expected 1 or more"),
        ({"max_tokens": 4, "min_tokens": 5}, r"min_tokens is 5; expected 0 … max_tokens \(4\)"),
        ({"stop_ids": (264,)}, "token 264 in stop_ids or logit_bias; the vocabulary has 0 … 263"),
        ({"logit_bias": dict.fromkeys(range(65), 1.0)}, "logit_bias has 65 tokens; at most 64 fit"),
    ],
)
async def test_sampling_that_cannot_be_done_is_refused(engine: JaxEngine, given: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        await engine.generate(PROMPT, TokenSampling(**given))


async def test_before_min_tokens_no_stop_is_drawn(engine: JaxEngine, params: Params, score) -> None:
    free = await engine.generate(PROMPT, TokenSampling(max_tokens=12, seed=1))
    early, late = free.ids[2], free.ids[9]
    assert early not in free.ids[:2] and late not in free.ids[:9]
    waits = await engine.generate(PROMPT, TokenSampling(max_tokens=12, min_tokens=5, stop_ids=(early,), seed=1))
    assert waits.ids[:2] == free.ids[:2] and early not in waits.ids[:5] and len(waits.ids) >= 5
    exact = await engine.generate(PROMPT, TokenSampling(max_tokens=12, min_tokens=2, stop_ids=(early,), seed=1))
    assert (exact.ids, exact.finish_reason, exact.stopped_by) == (free.ids[:3], "stop", early)
    done = await engine.generate(PROMPT, TokenSampling(max_tokens=12, min_tokens=3, stop_ids=(late,), seed=1))
    assert (len(done.ids), done.stopped_by) == (10, late)


async def test_a_bias_draws_and_the_plain_logprobs_do_not_know_it(engine: JaxEngine, params: Params, score) -> None:
    biased = await engine.generate(PROMPT, TokenSampling(max_tokens=8, logit_bias={7: 100.0}, temperature=0.7, seed=1))
    assert biased.ids == [7] * 8
    np.testing.assert_allclose(biased.logprobs, 0.0, atol=1e-6)
    batch = batch_of([PROMPT], [biased])
    recomputed = np.asarray(score(params, batch, 1.0).logprobs)[batch.mask]
    np.testing.assert_allclose(biased.plain_logprobs, recomputed, atol=1e-5)
    assert recomputed.max() < -1


async def test_plain_logprobs_are_under_temperature_1(engine: JaxEngine, params: Params, score) -> None:
    cold = await engine.generate(PROMPT, TokenSampling(0.5, top_k=20, max_tokens=20, seed=2))
    batch = batch_of([PROMPT], [cold])
    recomputed = np.asarray(score(params, batch, 1.0).logprobs)[batch.mask]
    np.testing.assert_allclose(cold.plain_logprobs, recomputed, atol=1e-5)
    assert np.mean(cold.logprobs) > np.mean(cold.plain_logprobs) + 1
    plain = await engine.generate(PROMPT, TokenSampling(max_tokens=4, seed=2))
    assert plain.plain_logprobs == plain.logprobs


async def test_a_stop_text_ends_with_the_token_that_completes_it(engine: JaxEngine) -> None:
    free = await engine.generate(PROMPT, TokenSampling(max_tokens=12, seed=1))
    text = f"{free.ids[4]}><{free.ids[5]}"
    stopped = await engine.generate(PROMPT, TokenSampling(max_tokens=12, stop=("zz", text), seed=1))
    assert (stopped.ids, stopped.finish_reason, stopped.stopped_by) == (free.ids[:6], "stop", text)
    assert len(stopped.logprobs) == len(stopped.plain_logprobs) == len(stopped.versions) == 6
    later = await engine.generate(PROMPT, TokenSampling(max_tokens=12, stop=(text,), min_tokens=6, seed=1))
    assert later.ids == free.ids
    with pytest.raises(ValueError, match="a stop string is empty"):
        await engine.generate(PROMPT, TokenSampling(stop=("",)))


async def test_a_stream_tells_the_same_in_pieces(engine: JaxEngine) -> None:
    sampling = TokenSampling(max_tokens=10, seed=4)
    whole = await engine.generate(PROMPT, sampling)
    pieces = [piece async for piece in engine.stream(PROMPT, sampling)]
    assert [len(piece.ids) for piece in pieces] == [4, 4, 2]
    assert [piece.finish_reason for piece in pieces] == [None, None, "length"]
    for name in ("ids", "logprobs", "plain_logprobs", "versions"):
        assert [x for piece in pieces for x in getattr(piece, name)] == getattr(whole, name)


async def test_a_stream_that_is_closed_gives_its_slot_back(engine: JaxEngine) -> None:
    async for _ in (stream := engine.stream(PROMPT, TokenSampling(max_tokens=40))):
        break
    await stream.aclose()
    await engine.generate(PROMPT, TokenSampling(max_tokens=1))
    assert not any(lane.busy for lane in engine._lanes)


async def test_abort_ends_a_request_with_what_it_has(engine: JaxEngine) -> None:
    sampling = TokenSampling(max_tokens=40, seed=5)
    whole = await engine.generate(PROMPT, sampling)
    tasks = [asyncio.create_task(engine.generate(PROMPT, sampling, request_id=f"r{i}")) for i in range(10)]
    stream = engine.stream(PROMPT, sampling, request_id="streamed")
    await engine.abort("nobody knows")
    await turns_of_the_loop()
    await engine.abort("r1")
    await engine.abort("r9")  # waits for a slot
    ended, never = await soon(tasks[1]), await soon(tasks[9])
    assert ended.finish_reason == never.finish_reason == "abort"
    assert 0 < len(ended.ids) < 40 and ended.ids == whole.ids[: len(ended.ids)]
    assert never.ids == [] and [t.done() for t in tasks] == [i in (1, 9) for i in range(10)]
    pieces = [await anext(stream)]
    await engine.abort()
    pieces += [piece async for piece in stream]
    assert pieces[-1].finish_reason == "abort"
    rest = await asyncio.gather(*tasks)
    assert {g.finish_reason for g in rest[2:9]} <= {"abort", "length"}
    assert await engine.generate(PROMPT, sampling) == whole


async def test_a_full_queue_refuses(engine: JaxEngine) -> None:
    await engine.pause()
    waiting = [asyncio.create_task(engine.generate(PROMPT, TokenSampling(max_tokens=2))) for _ in range(16)]
    await turns_of_the_loop()
    with pytest.raises(EngineBusyError, match="16 requests wait for a slot already; try again later"):
        await engine.generate(PROMPT, TokenSampling())
    await engine.resume()
    assert [len(g.ids) for g in await asyncio.gather(*waiting)] == [2] * 16


async def test_new_weights_draw_the_tokens_that_follow(
    engine: JaxEngine, params: Params, other_params: Params, score
) -> None:
    long = TokenSampling(max_tokens=40, seed=5)
    old = await engine.generate(PROMPT, long)
    running = asyncio.create_task(engine.generate(PROMPT, long))
    await turns_of_the_loop()
    try:
        await engine.load_weights(other_params, 7)
        assert engine.version == 7
        mixed = await soon(running)
        switch = mixed.versions.index(7)
        assert 0 < switch < 40 and mixed.versions == [0] * switch + [7] * (40 - switch)
        assert mixed.ids[:switch] == old.ids[:switch] and mixed.ids[switch:] != old.ids[switch:]
        fresh = await engine.generate(PROMPT, long)
        assert fresh.versions == [7] * 40
        batch = batch_of([PROMPT], [fresh])
        recomputed = np.asarray(score(other_params, batch, 1.0).logprobs)[batch.mask]
        np.testing.assert_allclose(batch.behaviour_logprobs[batch.mask], recomputed, atol=1e-5)
    finally:
        await engine.load_weights(params, 0)
    assert await engine.generate(PROMPT, long) == old


async def test_weights_are_the_engines_own(engine: JaxEngine, params: Params, model: Model) -> None:
    before = await engine.generate(PROMPT, TokenSampling(max_tokens=4))
    lent = jax.tree.map(lambda a: a.copy(), params)
    await engine.load_weights(lent, 0)
    for leaf in jax.tree.leaves(lent):
        leaf.delete()  # as the next update does with the state it is given
    assert await engine.generate(PROMPT, TokenSampling(max_tokens=4)) == before


async def test_pausing_to_abort_ends_all_and_new_ones_wait(engine: JaxEngine) -> None:
    tasks = [asyncio.create_task(engine.generate(PROMPT, TokenSampling(max_tokens=40))) for _ in range(10)]
    await turns_of_the_loop()
    await engine.pause("abort")
    done = await asyncio.wait_for(asyncio.gather(*tasks), 60)
    assert {g.finish_reason for g in done} == {"abort"} and [len(g.ids) for g in done[8:]] == [0, 0]
    new = asyncio.create_task(engine.generate(PROMPT, TokenSampling(max_tokens=4)))
    await turns_of_the_loop()
    assert not new.done()
    await engine.resume()
    assert (await soon(new)).finish_reason == "length"


@pytest.mark.parametrize("mode", ["in_place", "retract"])
async def test_weights_that_change_in_a_pause(
    engine: JaxEngine, params: Params, other_params: Params, score, mode: PauseMode
) -> None:
    running = asyncio.create_task(engine.generate(PROMPT, TokenSampling(max_tokens=40, seed=5)))
    await turns_of_the_loop()
    try:
        await engine.pause(mode)
        await engine.load_weights(other_params, 7)
        await engine.resume()
        mixed = await soon(running)
    finally:
        await engine.load_weights(params, 0)
    switch = mixed.versions.index(7)
    assert 0 < switch < 40 and mixed.versions == [0] * switch + [7] * (40 - switch)
    batch = batch_of([PROMPT], [mixed])
    recomputed = np.asarray(score(other_params, batch, 1.0).logprobs)[batch.mask]
    error = np.abs(batch.behaviour_logprobs[batch.mask] - recomputed)[switch:].max()
    # Read anew, the cache is the new weights' own; in place, it stays the old ones'.
    assert error < 1e-5 if mode == "retract" else error > 1e-3


async def test_paused_requests_wait(engine: JaxEngine, params: Params) -> None:
    expected = await engine.generate(PROMPT, TokenSampling(max_tokens=9))
    running = asyncio.create_task(engine.generate(PROMPT, TokenSampling(max_tokens=9)))
    await turns_of_the_loop()
    await engine.pause()
    waiting = asyncio.create_task(engine.generate(PROMPT, TokenSampling(max_tokens=9)))
    await turns_of_the_loop()
    assert not running.done() and not waiting.done()
    await engine.resume()
    assert await asyncio.gather(running, waiting) == [expected, expected]


async def test_weights_change_while_paused(engine: JaxEngine, params: Params) -> None:
    await engine.pause()
    try:
        await asyncio.wait_for(engine.load_weights(params, 0), 10)
    finally:
        await engine.resume()


async def test_a_cancelled_request_gives_its_slot_back(engine: JaxEngine) -> None:
    order: list[str] = []

    async def run(name: str, tokens: int) -> None:
        await engine.generate(PROMPT, TokenSampling(max_tokens=tokens))
        order.append(name)

    long = [asyncio.create_task(run("long", 40)) for _ in range(8)]
    await turns_of_the_loop()
    short = asyncio.create_task(run("short", 1))
    left = asyncio.create_task(run("left", 1))
    await turns_of_the_loop()
    long[1].cancel()
    left.cancel()
    await asyncio.gather(long[0], *long[2:], short)
    assert order == ["short", *["long"] * 7]


async def test_a_failure_ends_every_request_and_says_why(model: Model, params: Params) -> None:
    engine = JaxEngine(model, {**params, "embed": params["embed"][:, :16]}, slots=2)
    await engine.health()
    requests = [asyncio.create_task(engine.generate(p, TokenSampling())) for p in (PROMPT, PROMPT, PROMPT, [1])]
    results = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 60)
    assert {type(result) for result in results} == {EngineError}
    assert len({str(result) for result in results}) == 1
    for ask in (engine.health, lambda: engine.generate(PROMPT, TokenSampling())):
        with pytest.raises(EngineError, match=r"the engine stopped: \w+Error: .*16"):
            await ask()
    await engine.close()


async def test_a_failure_is_the_infrastructures_and_no_bug_of_the_environment() -> None:
    assert issubclass(EngineError, InfrastructureError)


async def test_closing_ends_what_waits(model: Model, params: Params) -> None:
    engine = JaxEngine(model, params, slots=2)
    with pytest.raises(ValueError, match=r"stop strings \['x'\] were asked for, .* knows no text: give it text_of="):
        await engine.generate(PROMPT, TokenSampling(stop=("x",)))
    await engine.pause()
    waiting = asyncio.create_task(engine.generate(PROMPT, TokenSampling()))
    await turns_of_the_loop()
    await engine.close()
    with pytest.raises(EngineError, match="closed while requests were waiting"):
        await soon(waiting)
    for ask in (engine.health, lambda: engine.generate(PROMPT, TokenSampling())):
        with pytest.raises(EngineError, match="the engine is closed"):
            await ask()
    await engine.close()


async def test_a_context_beyond_the_models_is_refused(model: Model, params: Params) -> None:
    for context in (1, 49):
        with pytest.raises(ValueError, match=rf"context is {context}; expected 2 … 48"):
            JaxEngine(model, params, context=context)


async def test_lanes_are_of_equal_size(model: Model, params: Params) -> None:
    with pytest.raises(ValueError, match="lanes is 3; expected a divisor of the 8 slots"):
        JaxEngine(model, params, slots=8, lanes=3)
