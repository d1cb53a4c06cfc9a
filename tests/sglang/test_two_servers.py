"""Two real servers behind the router, as `inference=sglang` opens them: versions, aborted requests, a second run, and
one of them killed."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from real_servers import MODEL, Bench, opened, scheduler
from server_processes import LONG_S, until

from envs.errors import ConfigError, UpswingError
from rl.cli.build import make_policy
from rl.cli.engine import open_engine
from rl.config import HardwareConfig, SglangInference
from rl.inference.engine import Generation, TokenSampling

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with opened(SglangInference(servers=2), tmp_path_factory.mktemp("run")) as bench:
        yield bench


async def test_both_are_sampled_from_and_get_the_new_version(bench: Bench) -> None:
    async with bench.drawing(8) as drawn:
        await bench.working(2)
        assert await bench.publish() == 1
    await bench.check(drawn, 0, 1)


async def test_a_request_behind_the_router_can_be_ended(bench: Bench) -> None:
    async def until_aborted(place: int) -> Generation:
        """Draws one completion after another until one is ended: so there is always one to be ended."""
        while True:
            found = await bench.engine.generate([72, place], TokenSampling(max_tokens=240))
            if found.finish_reason == "abort":
                return found

    calls = [asyncio.create_task(until_aborted(place)) for place in range(4)]
    await bench.working(2)
    async with asyncio.timeout(LONG_S):
        while not all(call.done() for call in calls):
            await bench.engine.abort()
            await asyncio.wait(calls, timeout=0.1)
    found = await asyncio.gather(*calls)
    assert any(each.ids for each in found), "what there was comes back"
    assert all(len(each.ids) == len(each.versions) < 240 for each in found)


async def test_a_second_trainer_is_told_and_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    url, owner = next(iter(bench.servers())), (bench.logs / "owner").read_text()
    version = bench.engine.version
    async with bench.drawing(4) as drawn:
        with pytest.raises(UpswingError, match=f"weights of another run, version {version} of {owner}. Give each run"):
            async with open_engine(SglangInference(urls=[url]), bench.policy, tmp_path, print):
                pass
        wider = make_policy(replace(MODEL, ffn=96), HardwareConfig(), seed=0)
        with pytest.raises(ConfigError, match="not the model that is trained: ffn is 64, not 96"):
            async with open_engine(SglangInference(urls=[url]), wider, tmp_path, print):
                pass
    await bench.check(drawn, version)
    await bench.publish()


async def test_one_of_two_is_killed_while_both_draw(bench: Bench) -> None:
    version, before = bench.engine.version, len(bench.told)
    async with bench.drawing(8) as drawn:
        await bench.working(2)
        scheduler(bench.main()).kill()
        done = len(drawn)
        await until(lambda: len(drawn) > done + 8)  # the other one goes on, also with what the first had begun
        await until(lambda: any(" is ready after " in text for text in bench.told[before:]))
        await bench.working(2)
        assert await bench.publish() == version + 1
    await bench.check(drawn, version, version + 1)
