"""One real server with little memory, as `inference=sglang` opens it, on its bad days: killed, frozen, overfilled.

Whatever happens, each completion ends once, whole, and each of its tokens is what the weights of its version made
likely.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from real_servers import MODEL, Bench, Drawn, kill, opened, scheduler
from server_processes import until

from envs.errors import ContextLengthError
from rl.config import SglangInference
from rl.inference.engine import TokenSampling

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELD = 700
"""Tokens that the server holds: three of the completions here."""

BEGUN, ENDED = "online from disk begin", "Update weights end"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("run")
    config = SglangInference(restarts=50, load_timeout=40.0, arguments={"max-total-tokens": HELD})
    async with opened(config, folder, replace(MODEL, context=1024, layers=6)) as bench:
        yield bench


def log(bench: Bench) -> str:
    return (bench.logs / "server-0.log").read_text(errors="replace")


async def back(bench: Bench, before: int) -> None:
    """Returns once the server draws again, after it was lost; `before` lines had been told by then."""
    await until(lambda: any(text.startswith("server 0 is ready after ") for text in bench.told[before:]))
    await bench.working(1)


def queued(bench: Bench) -> int:
    """How often the server told that requests wait until there is room."""
    return len(re.findall(r"#queue-req: [1-9]", log(bench)))


async def test_what_it_does_not_hold_waits_and_is_drawn_all_the_same(bench: Bench) -> None:
    version, before = bench.engine.version, queued(bench)
    async with bench.drawing(8) as drawn:
        await until(lambda: queued(bench) > before)
        assert await bench.publish() == version + 1
        waited, done = queued(bench), len(drawn)
        await until(lambda: queued(bench) > waited and len(drawn) > done + 8)
    await bench.check(drawn, version, version + 1)


async def test_what_it_can_never_hold_is_cut_or_refused(bench: Bench) -> None:
    context = bench.engine.context
    assert HELD - 10 < context < HELD
    with pytest.raises(ContextLengthError, match=f"the prompt has {context} tokens.* in the context of {context}"):
        await bench.engine.generate([72] * context, TokenSampling(max_tokens=1))
    prompts = [[72 + place] * 300 for place in range(3)]
    sampling = TokenSampling(max_tokens=10 * HELD)
    for found in await asyncio.gather(*(bench.engine.generate(prompt, sampling) for prompt in prompts)):
        assert (found.finish_reason, len(found.ids)) == ("length", context - 300)
        assert found.versions == [bench.engine.version] * (context - 300)


async def test_killed_while_it_generates(bench: Bench) -> None:
    version, before = bench.engine.version, len(bench.told)
    async with bench.drawing(2) as drawn:
        await bench.working(1)
        scheduler(bench.main()).kill()
        await back(bench, before)
        assert await bench.publish() == version + 1
    await bench.check(drawn, version, version + 1)


async def test_killed_while_it_loads_weights(bench: Bench) -> None:
    version, before = bench.engine.version, len(bench.told)
    async with bench.drawing(2) as drawn:
        await bench.working(1)
        publishing = await frozen_in_a_load(bench, drawn)
        kill(bench.main())
        assert await publishing == bench.engine.version > version
        await back(bench, before)
    await bench.check(drawn, *range(version, bench.engine.version + 1))


async def frozen_in_a_load(bench: Bench, drawn: list[Drawn]) -> "asyncio.Task[int]":
    """Publishes until the process that holds the weights could be stopped between the beginning and the end of a load,
    as its log has them; returns the publication that waits for it."""
    while True:
        done, begun, holder = len(drawn), log(bench).count(BEGUN), scheduler(bench.main())
        await until(lambda done=done: len(drawn) > done)  # so there are tokens of each version
        publishing = asyncio.create_task(bench.publish())
        while log(bench).count(BEGUN) == begun and not publishing.done():
            await asyncio.sleep(0.001)
        holder.suspend()
        if log(bench).count(ENDED) == begun:
            return publishing
        holder.resume()
        await publishing


async def test_killed_while_it_is_paused(bench: Bench) -> None:
    version, before = bench.engine.version, len(bench.told)
    async with bench.drawing(2) as drawn:
        await bench.working(1)
        await bench.engine.pause("in_place")
        kill(bench.main())
        await until(lambda: any(text.startswith("server 0 is ready after ") for text in bench.told[before:]))
        done = len(drawn)
        waiting = asyncio.create_task(bench.engine.generate([72], TokenSampling(max_tokens=1)))
        await asyncio.wait([waiting], timeout=1.0)
        assert not waiting.done() and len(drawn) == done, "it is paused, as the one before it was"
        await bench.engine.resume()
        assert (await waiting).versions == [version]
        await back(bench, before)
        assert await bench.publish() == version + 1
    await bench.check(drawn, version, version + 1)


async def test_killed_while_paused_it_may_go_on_before_it_is_back(bench: Bench) -> None:
    version, before = bench.engine.version, len(bench.told)
    async with bench.drawing(2) as drawn:
        await bench.working(1)
        await bench.engine.pause("retract")
        kill(bench.main())
        await bench.engine.resume()
        await back(bench, before)
    await bench.check(drawn, version)


async def test_hung_while_it_generates(bench: Bench) -> None:
    version, before = bench.engine.version, len(bench.told)
    async with bench.drawing(2) as drawn:
        await bench.working(1)
        scheduler(bench.main()).suspend()
        await back(bench, before)
        assert await bench.publish() == version + 1
    await bench.check(drawn, version, version + 1)
    assert any("server 0 hangs: no answer for 40 s" in text for text in bench.told[before:])
