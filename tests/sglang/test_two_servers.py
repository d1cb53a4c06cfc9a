"""Two real servers behind the router, as `inference=sglang` opens them: versions, aborted requests, a second run."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import psutil
import pytest
import pytest_asyncio

from envs.errors import ConfigError, UpswingError
from rl.cli.build import Policy, make_policy
from rl.cli.engine import open_engine
from rl.config import HardwareConfig, ModelConfig, SglangInference
from rl.inference.engine import Engine, Generation, TokenSampling
from rl.inference.score import Scorer
from rl.inference.server.jobs import joined
from rl.inference.sglang.http import Http
from rl.models.base import Params

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = ModelConfig(
    name="qwen3", layers=2, width=32, heads=2, kv_heads=1, ffn=64, context=256, options={"head_dim": 16}
)
TOKENS = TokenSampling(max_tokens=240)


class Bench(NamedTuple):
    """The engine, what it samples from, and where its servers are."""

    engine: Engine
    policy: Policy
    http: Http
    logs: Path
    told: list[str]

    def servers(self) -> dict[str, psutil.Process]:
        """The URL of each server that runs -> its main process."""
        found = {}
        for program in psutil.Process().children(recursive=True):
            try:
                words = program.cmdline()
            except psutil.NoSuchProcess:  # it has just ended
                continue
            if words[1:3] == ["-m", "sglang.launch_server"]:
                found[f"http://127.0.0.1:{words[words.index('--port') + 1]}"] = program
        return found

    def params(self, version: int) -> Params:
        """The weights of a version, which no other has."""
        fresh = jax.jit(self.policy.model.init)(jax.random.key(version))
        return self.policy.params if version == 0 else jax.tree.map(lambda x: x * 1.5, fresh)

    async def publish(self) -> int:
        version = self.engine.version + 1
        await self.engine.load_weights(self.params(version), version)
        for url in self.servers():
            label = (await self.http.get(url, "/model_info"))["weight_version"]
            assert label == f"{version}@{(self.logs / 'owner').read_text()}"
        return version

    def draw(self, count: int) -> list["asyncio.Task[Generation]"]:
        """Starts completions of different prompts, every other one as a stream."""
        return [asyncio.create_task(self._drawn(index)) for index in range(count)]

    async def _drawn(self, index: int) -> Generation:
        if index % 2:
            return await self.engine.generate([72, index], TOKENS)
        whole = Generation([], [], [], [], None)
        async for piece in self.engine.stream([72, index], TOKENS):
            whole = joined(whole, piece)
        return whole

    async def working(self) -> None:
        """Returns once both servers draw."""
        async with asyncio.timeout(60):
            while True:
                loads = [await self.http.get(url, "/v1/loads") for url in self.servers()]
                if len(loads) == 2 and all(load["loads"][0]["num_running_reqs"] for load in loads):
                    return
                await asyncio.sleep(0.02)

    async def whole(self, calls: list["asyncio.Task[Generation]"], *versions: int) -> None:
        """Every completion is complete, and each of its tokens is what the weights of its version made likely."""
        found = await asyncio.gather(*calls)
        for each in found:
            assert (each.finish_reason, len(each.ids)) == ("length", 240)
            assert each.versions == sorted(each.versions)
        assert {version for each in found for version in each.versions} == set(versions)
        for version in versions:
            score = Scorer(self.policy.model, self.params(version))
            for index, each in enumerate(found):
                drawn = np.asarray(each.versions) == version
                expected = np.asarray((await score([72, index, *each.ids]))[1:])
                np.testing.assert_allclose(np.asarray(each.logprobs)[drawn], expected[drawn], atol=1e-4)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder, told, http = tmp_path_factory.mktemp("run"), list[str](), Http(timeout=60.0)
    policy = make_policy(MODEL, HardwareConfig(), seed=0)
    config = SglangInference(servers=2, load_timeout=24.0, restarts=3)
    async with open_engine(config, policy, folder, told.append) as engine:
        yield Bench(engine, policy, http, folder, told)
    await http.close()


async def test_both_are_sampled_from_and_get_the_new_version(bench: Bench) -> None:
    calls = bench.draw(8)
    await bench.working()
    assert await bench.publish() == 1
    await bench.whole(calls, 0, 1)


async def test_a_request_behind_the_router_can_be_ended(bench: Bench) -> None:
    calls = [asyncio.create_task(bench.engine.generate([72, index], TOKENS)) for index in range(4)]
    await bench.working()
    await bench.engine.abort()
    found = await asyncio.gather(*calls)
    assert {each.finish_reason for each in found} == {"abort"}
    assert any(each.ids for each in found), "what there was comes back"
    assert all(len(each.ids) == len(each.versions) < 240 for each in found)


async def test_a_second_trainer_is_told_and_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    url, owner = next(iter(bench.servers())), (bench.logs / "owner").read_text()
    version, calls = bench.engine.version, bench.draw(4)
    with pytest.raises(UpswingError, match=f"weights of another run, version {version} of {owner}. Give each run"):
        async with open_engine(SglangInference(urls=[url]), bench.policy, tmp_path, print):
            pass
    model = replace(MODEL, ffn=96)
    with pytest.raises(ConfigError, match="not the model that is trained: ffn is 64, not 96"):
        async with open_engine(
            SglangInference(urls=[url]), make_policy(model, HardwareConfig(), seed=0), tmp_path, print
        ):
            pass
    await bench.whole(calls, version)
    await bench.publish()
