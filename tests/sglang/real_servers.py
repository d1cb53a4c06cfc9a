"""Engines on real servers: how tests have them draw, look at their processes, hold what was drawn against the weights.

Nothing waits for a time. What is to happen while servers draw happens while completions follow one another: some are
under way, however fast the machine is. What is waited for is looked at until it is there.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import psutil
from server_processes import LONG_S

from rl.cli.build import Policy, make_policy
from rl.cli.engine import open_engine
from rl.config import HardwareConfig, ModelConfig, SglangInference
from rl.inference.engine import Engine, EngineError, Generation, TokenSampling
from rl.inference.score import Scorer
from rl.inference.server.jobs import joined
from rl.inference.sglang.http import Http
from rl.models.base import Params

MODEL = ModelConfig(
    name="qwen3", layers=2, width=32, heads=2, kv_heads=1, ffn=64, context=256, options={"head_dim": 16}
)


class Drawn(NamedTuple):
    """A completion, and how many tokens were asked for."""

    prompt: list[int]
    tokens: int
    found: Generation


class Bench(NamedTuple):
    """An engine, what it samples from, and where its servers are."""

    engine: Engine
    policy: Policy
    http: Http
    logs: Path
    told: list[str]

    def servers(self) -> dict[str, psutil.Process]:
        """The URL of each server that runs -> its main process."""
        found = {}
        for program in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                words = program.cmdline()
                if words[1:3] == ["-m", "sglang.launch_server"]:
                    found[f"http://127.0.0.1:{words[words.index('--port') + 1]}"] = program
        return found

    def main(self) -> psutil.Process:
        """The main process of the first server."""
        return next(iter(self.servers().values()))

    def params(self, version: int) -> Params:
        """The weights of a version, which no other has."""
        fresh = jax.jit(self.policy.model.init)(jax.random.key(version))
        return self.policy.params if version == 0 else jax.tree.map(lambda x: x * 1.5, fresh)

    async def publish(self) -> int:
        """Publishes the next version, and sees that every server has it."""
        version = self.engine.version + 1
        await self.engine.load_weights(self.params(version), version)
        for url in self.servers():
            label = (await self.http.get(url, "/model_info"))["weight_version"]
            assert label == f"{version}@{(self.logs / 'owner').read_text()}"
        return version

    @asynccontextmanager
    async def drawing(self, places: int) -> AsyncIterator[list[Drawn]]:
        """Completions in so many places, one after another as long as the block runs, every other place as streams.

        On leaving, all that were begun are complete. Each place has a length of its own: they are never all at their
        end. What fails ends the block.
        """
        drawn, over = list[Drawn](), asyncio.Event()

        async def one_after_another(place: int) -> None:
            for number in itertools.count():
                prompt, tokens = [72, place, number], MODEL.context - 16 - 7 * place
                drawn.append(Drawn(prompt, tokens, await self.draw(prompt, tokens, streamed=place % 2 == 0)))
                if over.is_set():
                    return

        async with asyncio.TaskGroup() as group:
            for place in range(places):
                group.create_task(one_after_another(place))
            yield drawn
            over.set()

    async def draw(self, prompt: Sequence[int], tokens: int, *, streamed: bool = False) -> Generation:
        sampling = TokenSampling(max_tokens=tokens)
        if not streamed:
            return await self.engine.generate(prompt, sampling)
        whole = Generation([], [], [], [], None)
        async for piece in self.engine.stream(prompt, sampling):
            whole = joined(whole, piece)
        return whole

    async def working(self, servers: int) -> None:
        """Returns once so many servers draw."""
        async with asyncio.timeout(LONG_S):
            while sum([await self._draws(url) for url in self.servers()]) < servers:
                await asyncio.sleep(0.02)

    async def _draws(self, url: str) -> bool:
        try:
            return (await self.http.get(url, "/v1/loads"))["loads"][0]["num_running_reqs"] > 0
        except EngineError:  # it is just ending, or starting
            return False

    async def check(self, drawn: Sequence[Drawn], *versions: int) -> None:
        """Every completion is complete, and each of its tokens is what the weights of its version made likely."""
        assert len({tuple(each.prompt) for each in drawn}) == len(drawn) > 0
        for each in drawn:
            assert (each.found.finish_reason, len(each.found.ids)) == ("length", each.tokens)
            assert each.found.versions == sorted(each.found.versions)
        assert {version for each in drawn for version in each.found.versions} == set(versions)
        score = Scorer(self.policy.model, self.policy.params)
        for version in versions:
            score.load(self.params(version))
            for prompt, _, found in drawn:
                these = np.asarray(found.versions) == version
                if these.any():
                    expected = np.asarray((await score([*prompt, *found.ids]))[len(prompt) - 1 :])
                    np.testing.assert_allclose(np.asarray(found.logprobs)[these], expected[these], atol=1e-4)


@asynccontextmanager
async def opened(config: SglangInference, folder: Path, model: ModelConfig = MODEL) -> AsyncIterator[Bench]:
    """An engine with servers of its own, as `inference=sglang` opens it."""
    policy, told, http = make_policy(model, HardwareConfig(), seed=0), list[str](), Http(timeout=LONG_S)
    try:
        async with open_engine(config, policy, folder, told.append) as engine:
            yield Bench(engine, policy, http, folder, told)
    finally:
        await http.close()


def program(pid: int | None) -> psutil.Process:
    """The server below the process `pid` that watches it."""
    assert pid is not None
    return next(p for p in psutil.Process(pid).children() if "sglang.launch_server" in p.cmdline())


def scheduler(program: psutil.Process) -> psutil.Process:
    """The process of a server that holds the weights, below `program`. Its title says what it is."""
    return schedulers(program)[0]


def schedulers(program: psutil.Process) -> list[psutil.Process]:
    found = []
    for each in program.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "scheduler" in " ".join(each.cmdline()):
                found.append(each)
    return found


def kill(program: psutil.Process) -> None:
    """Kills a program and all it has started, at once."""
    for each in (*program.children(recursive=True), program):
        with contextlib.suppress(psutil.NoSuchProcess):  # it went with another one
            each.kill()
