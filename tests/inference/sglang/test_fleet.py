"""A fleet: servers that fail come back with their weights, and are not used before."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from server_processes import Make, alive, pids, until

from rl.inference.engine import EngineError
from rl.inference.sglang.fleet import Fleet, OnRestart, Revival, Route, highest
from rl.inference.sglang.server import Launched, Patience

AT_ONCE = Revival(restarts=2, backoff=0.05, steady=60.0)


@asynccontextmanager
async def running(
    servers: Sequence[Launched], on_restart: OnRestart | None = None, told: list[str] | None = None
) -> AsyncIterator[Fleet]:
    report = (told if told is not None else []).append
    fleet = Fleet(servers, revival=AT_ONCE, report=report, on_restart=on_restart)
    await fleet.start()
    try:
        yield fleet
    finally:
        await fleet.close()


async def kill(url: str, number: int = signal.SIGKILL) -> None:
    os.kill((await pids(url))[0], number)


async def test_a_killed_server_gets_its_weights_before_it_is_used(make: Make) -> None:
    given, published, told = list[str](), asyncio.Event(), list[str]()

    async def on_restart(url: str) -> None:
        assert await pids(url)  # it answers
        given.append(url)
        await published.wait()

    async with running([make("server 0"), make("server 1")], on_restart, told) as fleet:
        first, second = fleet.urls
        await fleet.serving()
        keys = {url: next(k for k in "abcdefgh" if highest(k, fleet.urls) == url) for url in fleet.urls}
        assert [await fleet.route(keys[url]) for url in fleet.urls] == [Route(first, {}), Route(second, {})]
        await kill(first)
        await until(lambda: bool(given))
        assert given == [first]
        assert not fleet.is_serving(first) and fleet.is_serving(second)
        assert await fleet.route(keys[first]) == Route(second, {})  # meanwhile the other one does it
        waiting = asyncio.create_task(fleet.serving(first))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        published.set()
        await waiting
        assert await fleet.route(keys[first]) == Route(first, {})
        assert fleet.restarts == 1 and fleet.urls == (first, second)
    assert any(text.startswith("server 0 was ended by SIGKILL") for text in told)
    assert any(text.endswith("bringing server 0 back, try 1 of 2") for text in told)


async def test_a_route_waits_while_nobody_serves(make: Make) -> None:
    async with running([make()]) as fleet:
        (url,) = fleet.urls
        await kill(url)
        await until(lambda: not fleet.is_serving(url))
        assert await fleet.route("a") == Route(url, {})
        assert fleet.is_serving(url)


async def test_a_server_that_hangs_is_replaced(make: Make) -> None:
    server = make(patience=Patience(ready=120.0, answer=3.0, every=0.05, grace=0.1))
    async with running([server]) as fleet:
        stopped = await pids(server.url)
        await kill(server.url, signal.SIGSTOP)
        await until(lambda: not fleet.is_serving(server.url))
        await fleet.serving()
        assert not any(map(alive, stopped)) and (await pids(server.url))[0] != stopped[0]


async def test_one_that_dies_while_it_gets_its_weights_is_tried_again(make: Make) -> None:
    tries = 0

    async def on_restart(url: str) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            await kill(url)
            await asyncio.sleep(600)  # the answer that never comes

    async with running([make()], on_restart) as fleet:
        await kill(fleet.urls[0])
        await until(lambda: tries == 2)
        await fleet.serving()
        assert fleet.restarts == 1


async def test_one_that_keeps_failing_is_given_up_and_says_why(make: Make) -> None:
    async def on_restart(url: str) -> None:
        raise EngineError("the weights do not fit")

    async with running([make("server 0")], on_restart) as fleet:
        await kill(fleet.urls[0])
        await until(lambda: not fleet.is_serving(fleet.urls[0]))
        message = "server 0 failed 3 times in a row and is given up; the last time: the weights do not fit"
        with pytest.raises(EngineError, match=message):
            await fleet.route("a")
        with pytest.raises(EngineError, match=message):
            await fleet.serving()


async def test_a_bug_in_the_hook_is_no_failure_of_the_server(make: Make) -> None:
    async def on_restart(url: str) -> None:
        raise KeyError("layers")

    async with running([make()], on_restart) as fleet:
        await kill(fleet.urls[0])
        await until(lambda: not fleet.is_serving(fleet.urls[0]))
        with pytest.raises(EngineError, match="'layers'") as caught:
            await fleet.route("a")
        assert isinstance(caught.value.__cause__, KeyError)


async def test_one_that_cannot_start_stops_the_others(make: Make) -> None:
    good, bad = make("server 0"), make("server 1", "--fail", "3", "--slow", "0.5")
    fleet = Fleet([good, bad])
    with pytest.raises(EngineError, match="server 1 ended with code 3"):
        await fleet.start()
    assert good.returncode is not None or good.pid is None
    with pytest.raises(EngineError, match="server 0 was stopped"):
        await fleet.serving()


async def test_who_waits_when_it_closes_is_told(make: Make) -> None:
    async with running([make()]) as fleet:
        await kill(fleet.urls[0])
        await until(lambda: not fleet.is_serving(fleet.urls[0]))
        waiting = asyncio.create_task(fleet.route("a"))
        await asyncio.sleep(0)
    with pytest.raises(EngineError, match="server 0 was stopped"):
        await waiting


def test_only_the_keys_of_a_server_that_leaves_move() -> None:
    urls = [f"http://10.0.0.{i}:30000" for i in range(4)]
    keys = [f"rollout {i}" for i in range(400)]
    before = {key: highest(key, urls) for key in keys}
    counts = [sum(url == chosen for chosen in before.values()) for url in urls]
    assert counts == [105, 102, 101, 92]
    after = {key: highest(key, urls[1:]) for key in keys}
    assert all(after[key] == before[key] for key in keys if before[key] != urls[0])
