"""Real servers hold the frozen weights and are given adapters alone; every token is of the adapter its version says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil
import pytest
import pytest_asyncio
from server_processes import LONG_S

from envs.errors import ConfigError, UpswingError
from rl.cli.build import Policy, make_policy
from rl.cli.engine import open_engine
from rl.cli.export import write_directory
from rl.config import HardwareConfig, LoraConfig, ModelConfig, SglangInference
from rl.inference.engine import Engine, Generation, TokenSampling
from rl.inference.score import Scorer
from rl.inference.server.jobs import joined
from rl.inference.sglang.command import find_python, server_command
from rl.inference.sglang.http import Http
from rl.inference.sglang.ports import take_ports
from rl.inference.sglang.publish.peft_files import shape_of
from rl.inference.sglang.server import Launched
from rl.models.base import Params
from rl.models.lora import bare, join, split

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRESH = ModelConfig(
    name="qwen3", layers=2, width=32, heads=2, kv_heads=1, ffn=64, context=256, options={"head_dim": 16}
)
NEAR = 1e-4
"""Nats between a server's float32 and ours."""


def make_base(folder: Path, seed: int) -> Path:
    folder.mkdir(exist_ok=True)
    write_directory(folder, make_policy(FRESH, HardwareConfig(), seed), None)
    return folder


def make(base: Path, **changes: Any) -> Policy:
    settings = {"rank": 4, "alpha": 8.0, "targets": "attention/(q|o)|ffn/(gate|up|down)", **changes}
    return make_policy(ModelConfig(source=str(base), lora=LoraConfig(**settings)), HardwareConfig(), 0)


def version_of(policy: Policy, version: int) -> Params:
    """The policy of a version. At first its adapter adds nothing; others change what it thinks a lot."""
    adapter, frozen = split(policy.params)
    if version == 0:
        return policy.params
    rng = np.random.default_rng(version)
    return join(jax.tree.map(lambda x: (0.2 * rng.normal(size=x.shape)).astype(x.dtype), adapter), frozen)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), 0)


@pytest.fixture(scope="module")
def policy(base: Path) -> Policy:
    return make(base)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(base: Path, policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A server of the frozen weights, as somebody else would start it."""
    [port] = take_ports(1, 0, "127.0.0.1")
    flags = shape_of(policy.origin.family, policy.model, policy.params).arguments("cpu")
    command = server_command(find_python(), base, port=port, arguments=flags)
    server = Launched("the server", f"http://127.0.0.1:{port}", command, tmp_path_factory.mktemp("log") / "log")
    await server.start(print)
    yield server.url
    await server.stop()


class Drawn(NamedTuple):
    """A completion of the prompt `[72, index]`."""

    index: int
    found: Generation


def limit(index: int) -> int:
    """Tokens of a completion. Of its own for each: those that follow one another never all end at once."""
    return 240 - 9 * index


async def drawn(engine: Engine, index: int) -> Drawn:
    """A completion, every other one as a stream."""
    sampling = TokenSampling(max_tokens=limit(index))
    if index % 2:
        return Drawn(index, await engine.generate([72, index], sampling))
    whole = Generation([], [], [], [], None)
    async for piece in engine.stream([72, index], sampling):
        whole = joined(whole, piece)
    return Drawn(index, whole)


async def one_after_another(engine: Engine, index: int, over: asyncio.Event) -> list[Drawn]:
    """Completions until it is over: so one is under way, however fast they are drawn."""
    found = [await drawn(engine, index)]
    while not over.is_set():
        found.append(await drawn(engine, index))
    return found


async def check(policy: Policy, drawn: list[Drawn]) -> set[int]:
    """Every completion is whole, and each token what the adapter of its version made likely; returns the versions."""
    versions = {version for each in drawn for version in each.found.versions}
    for version in versions:
        score = Scorer(policy.model, version_of(policy, version))
        for index, each in drawn:
            assert (each.finish_reason, len(each.ids)) == ("length", limit(index))
            own = np.asarray(each.versions) == version
            expected = np.asarray((await score([72, index, *each.ids]))[1:])
            np.testing.assert_allclose(np.asarray(each.logprobs)[own], expected[own], atol=NEAR)
    return versions


async def working(urls: list[str]) -> None:
    """Returns once all draw."""
    http = Http(timeout=30.0)
    async with asyncio.timeout(LONG_S):
        while True:
            loads = [await http.get(url, "/v1/loads") for url in urls]
            if all(load["loads"][0]["num_running_reqs"] for load in loads):
                break
            await asyncio.sleep(0.02)
    await http.close()


async def adapters(url: str) -> list[str]:
    http = Http(timeout=30.0)
    cards = (await http.get(url, "/v1/models"))["data"]
    await http.close()
    return [card["id"].partition("@")[0] for card in cards if card.get("parent")]


@pytest.mark.parametrize("pause", ["retract", "in_place"])
async def test_each_token_is_of_the_adapter_its_version_says(
    url: str, policy: Policy, tmp_path: Path, pause: str
) -> None:
    config = SglangInference(urls=[url], publish="lora", pause=pause)
    async with open_engine(config, policy, tmp_path, print) as engine:
        assert await check(policy, [await drawn(engine, 0)]) == {0}
        over = asyncio.Event()
        calls = [asyncio.create_task(one_after_another(engine, index, over)) for index in range(6)]
        await working([url])
        await engine.load_weights(version_of(policy, 1), 1)
        later = [asyncio.create_task(drawn(engine, index)) for index in range(6)]
        over.set()
        found = [each for call in calls for each in await call]
        assert 0 in await check(policy, found) <= {0, 1}
        # By retract, what was there is read anew, and drawn on; otherwise it stays with its adapter to its end.
        assert any(len(set(each.found.versions)) == 2 for each in found) is (pause == "retract")
        assert await check(policy, list(await asyncio.gather(*later))) == {1}
        await check_bare(policy, url)
        assert await adapters(url) == ["0", "1"]
        await engine.load_weights(version_of(policy, 2), 2)
        assert await adapters(url) == ["2"]
        await engine.relabel(3)
        assert set((await drawn(engine, 0)).found.versions) == {3}
    assert await adapters(url) == []


async def check_bare(policy: Policy, url: str) -> None:
    """Requests that name no adapter are of the frozen weights, whatever adapters there are."""
    http = Http(timeout=30.0)
    body = {"input_ids": [72, 1, 2], "sampling_params": {"temperature": 1.0, "max_new_tokens": 16, "ignore_eos": True}}
    answer = await http.post(url, "/generate", {**body, "return_logprob": True})
    await http.close()
    expected = await Scorer(policy.model, bare(policy.params))([72, 1, 2, *answer["output_ids"]])
    logprobs = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
    np.testing.assert_allclose(logprobs, expected[2:], atol=NEAR)


async def test_what_is_wrong_with_a_server_is_one_error_and_changes_nothing(
    url: str, base: Path, policy: Policy, tmp_path: Path
) -> None:
    config = SglangInference(urls=[url], publish="lora")
    async with open_engine(config, policy, tmp_path / "mine" / "sglang", print) as engine:
        mistakes: list[tuple[Policy, type[Exception], str]] = [
            (policy, UpswingError, r"weights of another run, version 0 of .*/mine\.[0-9a-f]{8}\. Give each run"),
        ]
        await refused(config, mistakes, tmp_path)
        assert await check(policy, [await drawn(engine, 0)]) == {0}
    other = make_base(tmp_path / "other", 1)
    await refused(
        config,
        [
            (make(other), ConfigError, r"does not compute what the trainer does with an adapter"),
            (make(base, rank=8), ConfigError, r"its adapters have rank 4 at most, and this one has 8"),
        ],
        tmp_path,
    )
    assert await adapters(url) == []


async def refused(config: SglangInference, mistakes: list[tuple[Policy, type[Exception], str]], folder: Path) -> None:
    for number, (policy, error, message) in enumerate(mistakes):
        with pytest.raises(error, match=message):
            async with open_engine(config, policy, folder / f"mistake-{number}" / "sglang", print):
                pass


async def test_of_two_behind_the_router_one_that_is_killed_comes_back_with_the_newest(
    base: Path, tmp_path: Path
) -> None:
    policy = make(base, quantize="int8")  # servers have what the trainer computes with: the numbers read back
    config = SglangInference(servers=2, publish="lora", restarts=3)
    async with open_engine(config, policy, tmp_path, print) as engine:
        urls = list(servers(tmp_path))
        await engine.load_weights(version_of(policy, 1), 1)
        over = asyncio.Event()
        begun = [asyncio.create_task(one_after_another(engine, index, over)) for index in range(8)]
        await working(urls)
        victim = servers(tmp_path)[urls[0]]
        for process in [*victim.children(recursive=True), victim]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it went with another one
                process.kill()
        over.set()
        assert await check(policy, [each for call in begun for each in await call]) == {1}
        calls = [asyncio.create_task(drawn(engine, index)) for index in range(8)]
        await engine.load_weights(version_of(policy, 2), 2)  # waits until both serve
        assert await check(policy, list(await asyncio.gather(*calls))) <= {1, 2}
        found = await asyncio.gather(*(drawn(engine, index) for index in range(8)))
        assert await check(policy, list(found)) == {2}
        assert [(await adapters(url))[-1] for url in urls] == ["2", "2"]
        assert set(servers(tmp_path)) == set(urls) and servers(tmp_path)[urls[0]].pid != victim.pid


def servers(folder: Path) -> dict[str, psutil.Process]:
    """The URL of each server that was started for an engine -> its main process."""
    found = {}
    for program in psutil.Process().children(recursive=True):
        try:
            words = program.cmdline()
        except psutil.NoSuchProcess:  # it has just ended
            continue
        if words[1:3] == ["-m", "sglang.launch_server"] and str(folder / "model") in words:
            found[f"http://127.0.0.1:{words[words.index('--port') + 1]}"] = program
    return found
