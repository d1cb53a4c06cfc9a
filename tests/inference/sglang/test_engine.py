"""What the client makes of servers that go, forget, keep silent or belong to another trainer. The server is our own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from server_processes import until

from envs.render import ByteRenderer
from rl.inference.engine import EngineBusyError, EngineError, Generation, TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.inference.server.app import make_app
from rl.inference.server.lifecycle import Server, bound
from rl.inference.sglang.engine import SglangEngine
from rl.inference.sglang.fleet import Fleet
from rl.inference.sglang.http import Http
from rl.inference.sglang.server import Attached, Patience
from rl.models.base import Model, Params

PROMPT = [5, 6, 7]
LONG = TokenSampling(max_tokens=40, seed=3)
Make = Callable[..., Awaitable[SglangEngine]]


class Place(NamedTuple):
    """What samples, and where it is served."""

    inside: JaxEngine
    servers: list[Server]

    async def serve(self, port: int = 0) -> str:
        app = make_app(self.inside, ByteRenderer(), model="tiny", vocab_size=264)
        self.servers.append(await Server.start(app, bound(port=port)))
        return self.servers[-1].url

    async def under_way(self) -> None:
        await until(lambda: any(lane.busy for lane in self.inside._lanes))

    @property
    def requests(self) -> int:
        return sum(len(lane.requests) for lane in self.inside._lanes) + len(self.inside._waiting)


@pytest_asyncio.fixture
async def place(model: Model, params: Params) -> AsyncIterator[Place]:
    place = Place(JaxEngine(model, params, slots=4, lanes=1, tokens_per_dispatch=1), [])
    await place.serve()
    yield place
    await place.inside.resume()
    for server in place.servers:
        await server.stop()
    await place.inside.close()


@pytest_asyncio.fixture
async def make(place: Place) -> AsyncIterator[Make]:
    engines: list[SglangEngine] = []

    async def make(**settings: object) -> SglangEngine:
        patience = Patience(ready=30.0, answer=30.0, every=0.1)
        fleet = Fleet([Attached("server", place.servers[0].url, patience)], report=lambda text: None)
        await fleet.start()
        engines.append(SglangEngine(fleet, None, Http(), context=48, vocabulary=264, **settings))  # type: ignore[arg-type]
        return engines[-1]

    yield make
    for engine in engines:
        await engine.close()


async def test_a_request_whose_server_goes_is_made_anew(place: Place, make: Make) -> None:
    engine, over = await make(), asyncio.Event()
    alone = await engine.generate(PROMPT, LONG)
    assert len(alone.ids) == 40

    async def one_after_another() -> list[Generation]:
        """So that one is under way, however fast they are drawn."""
        found: list[Generation] = []
        while not over.is_set():
            found.append(await engine.generate(PROMPT, LONG))
        return found

    calls = asyncio.create_task(one_after_another())
    await place.under_way()
    await place.inside.pause()
    gone = place.servers.pop()
    await gone.end()
    await place.inside.resume()
    await place.serve(urlsplit(gone.url).port or 0)
    over.set()
    for found in await calls:
        assert found == alone and found.versions == [0] * 40


async def test_a_server_that_is_gone_is_paused_when_it_is_back(place: Place, make: Make) -> None:
    engine = await make()
    gone = place.servers.pop()
    await gone.end()
    pausing = asyncio.create_task(engine.pause())
    await until(lambda: engine._paused)  # nobody has heard of it
    await place.serve(urlsplit(gone.url).port or 0)
    await pausing
    call = asyncio.create_task(engine.generate(PROMPT, LONG))
    await until(lambda: place.requests == 1)
    assert not any(lane.busy for lane in place.inside._lanes)
    await engine.resume()
    assert len((await call).ids) == 40


async def test_an_end_that_nobody_asked_for_is_no_end(place: Place, make: Make) -> None:
    engine = await make()
    pieces: list[Generation] = []
    async for piece in engine.stream(PROMPT, LONG):
        pieces.append(piece)
        if len(pieces) == 2:
            await place.inside.abort()  # as a publication that pauses by "abort" does
    assert [piece.finish_reason for piece in pieces].count(None) == len(pieces) - 1
    assert pieces[-1].finish_reason == "length" and sum(len(piece.ids) for piece in pieces) == 40


async def test_weights_of_another_trainer_are_noticed(place: Place, make: Make) -> None:
    engine = await make()
    await place.inside.relabel(9)
    with pytest.raises(EngineError, match=r"weights of version '9', which this run never gave it \(its newest is 0\)"):
        await engine.generate(PROMPT, LONG)
    await engine.relabel(9)
    assert (await engine.generate(PROMPT, LONG)).versions == [9] * 40


async def test_silence_ends_a_request_on_both_sides(place: Place, make: Make) -> None:
    engine = await make(timeout=0.3)
    await place.inside.pause()
    with pytest.raises(EngineError, match=r"/generate said nothing for 0\.3 s"):
        await engine.generate(PROMPT, LONG)
    await place.inside.resume()
    await until(lambda: not place.requests)


async def test_only_so_many_are_under_way_and_wait(place: Place, make: Make) -> None:
    engine = await make(in_flight=1, max_waiting=1)
    await place.inside.pause()
    first = asyncio.create_task(engine.generate(PROMPT, LONG))
    await until(lambda: place.requests == 1)
    second = asyncio.create_task(engine.generate(PROMPT, LONG))
    await until(lambda: engine._drawer.waiting == 1)
    assert place.requests == 1
    with pytest.raises(EngineBusyError, match="1 requests wait for their turn already"):
        await engine.generate(PROMPT, LONG)
    second.cancel()
    await place.inside.resume()
    assert len((await first).ids) == 40


@pytest.mark.parametrize("token", [264, -1])
async def test_tokens_that_would_end_a_server_are_kept_from_it(make: Make, token: int) -> None:
    engine = await make()
    with pytest.raises(ValueError, match=f"token {token} in the prompt; the vocabulary has 0 … 263"):
        await engine.generate([5, token], LONG)


async def test_nothing_is_published_without_a_publisher(make: Make, params: Params) -> None:
    engine = await make()
    with pytest.raises(EngineError, match="version 1 cannot be published"):
        await engine.load_weights(params, 1)
