"""What every engine does, in process, behind the engine's own server, and as SGLang (`make test-sglang`).

Two layers of width 32 as a Qwen3, the alphabet of `ByteRenderer`, a context of 192.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pytest_asyncio

from envs import ContextLengthError
from envs.render import ByteRenderer
from rl.cli.build import Policy, make_policy
from rl.cli.export import write_directory
from rl.cli.reload import weights_reader
from rl.config import HardwareConfig, ModelConfig
from rl.inference.engine import Engine, EngineError, Generation, TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.inference.server.app import make_app
from rl.inference.server.jobs import joined
from rl.inference.server.lifecycle import Server
from rl.inference.sglang.command import find_python, server_command
from rl.inference.sglang.engine import SglangEngine
from rl.inference.sglang.fleet import Fleet
from rl.inference.sglang.http import Http
from rl.inference.sglang.ports import take_ports
from rl.inference.sglang.publish.disk import Disk
from rl.inference.sglang.publish.publisher import Publisher
from rl.inference.sglang.publish.way import Exporter
from rl.inference.sglang.server import Attached, Launched
from rl.inference.sglang.server import Server as AnyServer
from rl.models.base import Params
from rl.models.decoder import hidden_states
from rl.weights.save import whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT = 192
PROMPT = [5, 6, 7, 8, 9, 10]
GREEDY = TokenSampling(0.0, max_tokens=12)
LONG = TokenSampling(max_tokens=CONTEXT - len(PROMPT), seed=7)
TEXT = ByteRenderer()
HARDWARE = HardwareConfig()


def spelled(ids: Sequence[int]) -> str:
    return "".join(f"<{i}>" for i in ids)


Logits = Callable[[Params, jax.Array, jax.Array], jax.Array]


class Subject(NamedTuple):
    """An engine, what it samples from, and how many completions are under way in it."""

    engine: Engine
    policy: Policy
    other: Params
    logits: Logits
    busy: "Busy"


class Busy:
    """How many completions the thing that draws is working on."""

    def __init__(self, engine: JaxEngine | None = None, url: str = "") -> None:
        self._engine, self._url = engine, url

    async def count(self) -> int:
        if self._engine is not None:
            return sum(len(lane.requests) for lane in self._engine._lanes)
        http = Http()
        try:
            loads = await http.get(self._url, "/v1/loads")
            return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads["loads"])
        finally:
            await http.close()

    async def until(self, wanted: int) -> None:
        end = time.monotonic() + 120
        while await self.count() != wanted:
            assert time.monotonic() < end, f"{await self.count()} under way; expected {wanted}"
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def policy() -> Policy:
    shape = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 64, "context": CONTEXT, "rope_theta": 100.0}
    return make_policy(ModelConfig(name="qwen3", options={"head_dim": 16}, **shape), HARDWARE, seed=0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def other(policy: Policy) -> Params:
    return jax.jit(policy.model.init)(jax.random.key(1))


@pytest.fixture(scope="module")
def logits(policy: Policy) -> Logits:
    return logits_of(policy)


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["in process", "over http", pytest.param("sglang", marks=pytest.mark.sglang)],
)
async def subject(
    request: pytest.FixtureRequest,
    policy: Policy,
    other: Params,
    logits: Logits,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Subject]:
    if request.param == "sglang":
        opened = launched(policy, tmp_path_factory.mktemp("sglang"))
    else:
        opened = embedded(policy, tmp_path_factory.mktemp("model"), over_http=request.param == "over http")
    async with opened as (engine, busy):
        await engine.load_weights(policy.params, 0)
        yield Subject(engine, policy, other, logits, busy)


@asynccontextmanager
async def embedded(policy: Policy, folder: Path, *, over_http: bool) -> AsyncIterator[tuple[Engine, Busy]]:
    inner = JaxEngine(policy.model, policy.params, slots=8, lanes=1, tokens_per_dispatch=2, text_of=spelled)
    if not over_http:
        yield inner, Busy(inner)
        await inner.close()
        return
    read = weights_reader(policy, HARDWARE, "float32")

    async def load_weights(path: str) -> Params:
        return await asyncio.to_thread(read, path)

    server = await Server.start(
        make_app(inner, TEXT, model="tiny", vocab_size=policy.model.config.vocab_size, load_weights=load_weights)
    )
    engine = await remote(policy, folder, [Attached("server", server.url)])
    try:
        yield engine, Busy(inner)
    finally:
        await engine.close()
        await server.stop()
        await inner.close()


@asynccontextmanager
async def launched(policy: Policy, folder: Path) -> AsyncIterator[tuple[Engine, Busy]]:
    (port,) = take_ports(1, 0, "127.0.0.1")
    extra = {"skip-tokenizer-init": True, "context-length": CONTEXT + 7}
    command = server_command(find_python(), folder / "model", port=port, arguments=extra)
    command = command._replace(settings={**command.settings, "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"})
    url = f"http://127.0.0.1:{port}"
    engine = await remote(policy, folder, [Launched("server", url, command, folder / "server.log")])
    try:
        yield engine, Busy(url=url)
    finally:
        await engine.close()


async def remote(policy: Policy, folder: Path, servers: Sequence[AnyServer]) -> SglangEngine:
    with whole(folder / "model") as draft:
        write_directory(draft, policy, "float32")
    fleet = Fleet(servers)
    await fleet.start()
    http = Http(timeout=60.0)
    exporter = Exporter(policy.origin.family, policy.model, "float32")
    publisher = Publisher(Disk(exporter, http, beside=folder / "model"), http, names=None, pause="retract", flush=True)
    return SglangEngine(
        fleet, publisher, http, context=CONTEXT, vocabulary=policy.model.config.vocab_size, text_of=spelled
    )


def logits_of(policy: Policy) -> Logits:
    """The trainer's own forward pass, [T, V] logits of one row of tokens."""

    @jax.jit
    def logits(params: Params, row: jax.Array, filled: jax.Array) -> jax.Array:
        places = jnp.broadcast_to(jnp.arange(CONTEXT, dtype=jnp.int32), row.shape)
        hidden, _ = hidden_states(policy.model, params, row, places, filled.astype(jnp.int32))
        return hidden[0] @ policy.model.head(params).T

    return logits


def logprobs_of(subject: Subject, params: Params, generation: Generation, temperature: float = 1.0) -> np.ndarray:
    """The trainer's own log-probabilities [T, V] at every drawn token."""
    ids = [*PROMPT, *generation.ids]
    row = np.zeros((1, CONTEXT), np.int32)
    row[0, : len(ids)] = ids
    logits = subject.logits(params, jnp.asarray(row), jnp.asarray(np.arange(CONTEXT) < len(ids))[None])
    return np.asarray(jax.nn.log_softmax(logits / temperature, axis=-1))[len(PROMPT) - 1 : len(ids) - 1]


async def test_greedy_tokens_are_the_likeliest(subject: Subject) -> None:
    found = await subject.engine.generate(PROMPT, GREEDY)
    expected = logprobs_of(subject, subject.policy.params, found)
    assert found.ids == expected.argmax(-1).tolist() and len(set(found.ids)) > 1
    assert (found.finish_reason, found.versions, found.logprobs) == ("length", [0] * 12, [0.0] * 12)
    np.testing.assert_allclose(found.plain_logprobs, expected.max(-1), atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_are_the_trainers(subject: Subject, temperature: float) -> None:
    sampling = [TokenSampling(temperature, max_tokens=20, seed=seed) for seed in range(8)]
    found = await asyncio.gather(*(subject.engine.generate(PROMPT, each) for each in sampling))
    assert len({tuple(each.ids) for each in found}) == 8
    for each in found:
        rows = np.arange(20), each.ids
        expected = logprobs_of(subject, subject.policy.params, each, temperature)[rows]
        np.testing.assert_allclose(each.logprobs, expected, atol=1e-4)
        plain = logprobs_of(subject, subject.policy.params, each)[rows]
        known = np.isfinite(each.plain_logprobs)
        np.testing.assert_allclose(np.asarray(each.plain_logprobs)[known], plain[known], atol=1e-4)
        assert known.all() or temperature != 1.0


async def test_truncation_is_part_of_the_logprobs_or_they_are_unknown(subject: Subject) -> None:
    found = await subject.engine.generate(PROMPT, TokenSampling(top_k=2, max_tokens=20, seed=1))
    plain = logprobs_of(subject, subject.policy.params, found)
    best = np.sort(plain, axis=-1)[:, -2:]
    drawn = plain[np.arange(20), found.ids]
    assert (drawn >= best[:, 0] - 1e-5).all(), "one of the two likeliest"
    expected = drawn - np.logaddexp(best[:, 0], best[:, 1])
    assert np.isnan(found.logprobs).all() or np.allclose(found.logprobs, expected, atol=1e-4)
    np.testing.assert_allclose(found.plain_logprobs, drawn, atol=1e-4)


async def test_stop_ids_and_texts_end_it_and_are_part_of_it(subject: Subject) -> None:
    whole = await subject.engine.generate(PROMPT, GREEDY)
    stop = next(token for token in whole.ids if token != whole.ids[0])
    count = whole.ids.index(stop) + 1
    by_id = await subject.engine.generate(PROMPT, replace(GREEDY, stop_ids=(stop,)))
    assert (by_id.ids, by_id.finish_reason, by_id.stopped_by) == (whole.ids[:count], "stop", stop)
    text = f"{whole.ids[count - 1]}><{whole.ids[count]}>"
    by_text = await subject.engine.generate(PROMPT, replace(GREEDY, stop=(text,)))
    assert (by_text.ids, by_text.finish_reason, by_text.stopped_by) == (whole.ids[: count + 1], "stop", text)
    assert len(by_text.logprobs) == len(by_text.versions) == count + 1


async def test_tokens_can_be_forced_and_forbidden(subject: Subject) -> None:
    forced = await subject.engine.generate(PROMPT, TokenSampling(max_tokens=3, logit_bias={7: 100.0}))
    assert forced.ids == [7, 7, 7] and forced.logprobs == pytest.approx([0.0] * 3, abs=1e-4)


async def test_the_context_ends_a_completion(subject: Subject) -> None:
    long = [(7 * i) % 256 for i in range(CONTEXT - 3)]
    found = await subject.engine.generate(long, TokenSampling(max_tokens=50))
    assert len(found.ids) == 3 and found.finish_reason == "length"
    assert len((await subject.engine.generate([*long, 1, 2], TokenSampling())).ids) == 1
    with pytest.raises(ContextLengthError, match="the prompt has 192 tokens, but a prompt needs 1 … 191"):
        await subject.engine.generate([*long, 1, 2, 3], TokenSampling())
    with pytest.raises(ContextLengthError, match="the prompt has 0 tokens"):
        await subject.engine.generate([], TokenSampling())
    assert subject.engine.context == CONTEXT


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (TokenSampling(-1.0), "temperature is -1.0; expected 0 or more"),
        (TokenSampling(top_p=1.5), "top_p is 1.5"),
        (TokenSampling(max_tokens=0), "max_tokens is 0"),
        (TokenSampling(stop_ids=(264,)), "token 264 in stop_ids or logit_bias; the vocabulary has 0 … 263"),
        (TokenSampling(stop=("",)), "a stop string is empty"),
    ],
)
async def test_what_cannot_be_done(subject: Subject, sampling: TokenSampling, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await subject.engine.generate(PROMPT, sampling)


async def test_a_stream_says_the_same(subject: Subject) -> None:
    whole = await subject.engine.generate(PROMPT, GREEDY)
    pieces = [piece async for piece in subject.engine.stream(PROMPT, GREEDY)]
    assert len(pieces) > 2 and [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert [token for piece in pieces for token in piece.ids] == whole.ids
    assert [version for piece in pieces for version in piece.versions] == whole.versions
    plain = [logprob for piece in pieces for logprob in piece.plain_logprobs]
    assert plain == pytest.approx(whole.plain_logprobs, abs=1e-4) and pieces[-1].finish_reason == "length"


async def until_ended(engine: Engine, begun: asyncio.Event, name: str | None = None) -> Generation:
    """Long completions, one after another, until somebody ends one: so one is under way, however quickly they are
    drawn and however slowly this process looks. `begun` is set while one has tokens."""
    while True:
        found = await watched(engine, LONG, begun, name)
        begun.clear()
        if found.finish_reason != "length":
            return found


async def watched(engine: Engine, sampling: TokenSampling, begun: asyncio.Event, name: str | None = None) -> Generation:
    """A completion, piece by piece, as one."""
    whole = Generation([], [], [], [], None)
    async for piece in engine.stream(PROMPT, sampling, request_id=name):
        whole = joined(whole, piece)
        begun.set()
    return whole


async def test_abort_keeps_what_there_is(subject: Subject) -> None:
    begun = asyncio.Event()
    other = asyncio.create_task(subject.engine.generate(PROMPT, replace(LONG, max_tokens=20)))
    ended = asyncio.create_task(until_ended(subject.engine, begun, "mine"))
    await subject.engine.abort("nobody")
    async with asyncio.timeout(120):
        while not ended.done():
            await begun.wait()
            await subject.engine.abort("mine")
            await asyncio.wait([ended], timeout=0.1)
    found = await ended
    assert found.finish_reason == "abort" and 0 < len(found.ids) < LONG.max_tokens
    assert len(found.ids) == len(found.versions)
    assert (await other).finish_reason == "length"
    await subject.busy.until(0)


async def test_whoever_leaves_frees_its_place(subject: Subject) -> None:
    call = asyncio.create_task(until_ended(subject.engine, asyncio.Event()))
    await subject.busy.until(1)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert call.cancelled()
    await subject.busy.until(0)
    async with aclosing(subject.engine.stream(PROMPT, LONG)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            assert piece.ids
            break
    await subject.busy.until(0)


async def test_requests_wait_while_it_is_paused(subject: Subject) -> None:
    await subject.engine.pause("in_place")
    call = asyncio.create_task(subject.engine.generate(PROMPT, GREEDY))
    await asyncio.sleep(0.2)
    assert not call.done()
    await subject.engine.health()
    await subject.engine.resume()
    assert (await call).finish_reason == "length"
    await subject.engine.health()


async def test_a_pause_may_end_what_is_under_way(subject: Subject) -> None:
    begun = asyncio.Event()
    ended = asyncio.create_task(until_ended(subject.engine, begun))
    await begun.wait()
    async with asyncio.timeout(120):
        while not ended.done():  # the one that had begun may just have come to its end, and the next one waits
            await subject.engine.pause("abort")
            await asyncio.wait([ended], timeout=1.0)
            await subject.engine.resume()
    found = await ended
    assert found.finish_reason == "abort" and len(found.ids) == len(found.versions) < LONG.max_tokens


async def test_an_update_in_flight_gives_every_token_its_version(subject: Subject) -> None:
    """Last, since versions only grow."""
    engine, policy, other = subject.engine, subject.policy, subject.other
    await engine.flush_cache()
    begun, updated = [asyncio.Event() for _ in range(3)], asyncio.Event()
    drawn: list[Generation] = []

    async def one_after_another(number: int) -> None:
        """Of another length in each place: they do not all come to their end at the moment of the update."""
        sampling = replace(LONG, max_tokens=LONG.max_tokens - 17 * number, seed=number)
        while not updated.is_set():
            drawn.append(await watched(engine, sampling, begun[number]))

    calls = [asyncio.create_task(one_after_another(number)) for number in range(3)]
    await asyncio.gather(*(event.wait() for event in begun))
    await engine.pause("in_place")
    await engine.load_weights(other, 5)
    updated.set()
    await engine.resume()
    assert engine.version == 5
    fresh = await engine.generate(PROMPT, replace(GREEDY, max_tokens=6))
    assert fresh.versions == [5] * 6 and fresh.ids == logprobs_of(subject, other, fresh).argmax(-1).tolist()
    await asyncio.gather(*calls)
    for found in drawn:
        before = found.versions.count(0)
        assert found.finish_reason == "length" and found.versions == [0] * before + [5] * (len(found.ids) - before)
        rows = np.arange(before), found.ids[:before]
        np.testing.assert_allclose(found.logprobs[:before], logprobs_of(subject, policy.params, found)[rows], atol=1e-4)
    assert any(0 < found.versions.count(0) < len(found.ids) for found in drawn), "the update came while it was drawn"


async def test_health_after_the_end(subject: Subject) -> None:
    await subject.engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        await subject.engine.health()
