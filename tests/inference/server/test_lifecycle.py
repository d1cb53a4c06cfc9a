"""How a server begins and ends; `rl serve` as a process."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from envs import OpenAIClient, evaluate, load_environment
from envs.errors import ConfigError
from envs.render import ByteRenderer
from envs.types import Sampling
from rl.cli.build import make_policy
from rl.cli.main import main
from rl.config import HardwareConfig, ModelConfig
from rl.inference.jax_engine import JaxEngine
from rl.inference.score import Scorer
from rl.inference.server.app import make_app
from rl.inference.server.lifecycle import Server, bound, serve
from rl.rollout.client import EngineClient
from rl.weights.save import save_config, save_weights

LONG = {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 500, "ignore_eos": True}}
SMALL = ["model.layers=1", "model.width=16", "model.heads=2", "model.kv_heads=1", "model.ffn=16", "model.context=256"]


@pytest.mark.asyncio(loop_scope="session")
async def test_a_port_that_is_taken_is_named(engine: JaxEngine) -> None:
    server = await Server.start(make_app(engine, ByteRenderer(), model="tiny"))
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 is taken; name another one with port=…, or port"):
        bound(port=port)
    await server.stop()
    again = await Server.start(make_app(engine, ByteRenderer(), model="tiny"), bound(port=port))
    assert again.url == server.url
    await again.stop()
    with pytest.raises(ConfigError, match=r"port is 99999; expected 0 … 65535"):
        bound(port=99999)
    with pytest.raises(ConfigError, match=r"cannot listen at host=192\.0\.2\.1 port=0: .*assign"):
        bound("192.0.2.1")


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("signals", [1, 2])
async def test_a_signal_ends_a_server_and_a_second_one_does_not_wait(signals: int, engine: JaxEngine) -> None:
    ready: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    app = make_app(engine, ByteRenderer(), model="tiny")
    serving = asyncio.create_task(serve(app, bound(), drain=60, ready=ready.set_result))
    async with aiohttp.ClientSession((await ready).url) as http:
        await engine.pause("in_place")
        try:
            for response in await asyncio.gather(http.get("/health"), http.get("/health")):  # two connections
                assert (await response.json()) == {"status": "ok"}
            waiting = asyncio.create_task(
                http.post("/generate", json={**LONG, "sampling_params": {"max_new_tokens": 3}})
            )
            while engine_requests(engine) < 1:
                await asyncio.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
            done, _ = await asyncio.wait((serving,), timeout=0.1)
            assert not done, "what is under way is waited for"
            async with http.post("/generate", json=LONG) as late:  # over a connection that was open before
                assert (late.status, (await late.json())["error"]["message"]) == (503, "the server is shutting down")
            if signals == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait_for(serving, 20)
        finally:
            await engine.resume()
        if signals == 2:
            with pytest.raises(aiohttp.ClientError):
                await waiting
        else:
            assert len((await (await waiting).json())["output_ids"]) == 3
            await asyncio.wait_for(serving, 20)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(("drain", "reason"), [(30.0, "length"), (0.0, "abort")])
async def test_what_is_under_way_is_answered_when_a_server_ends(drain: float, reason: str, engine: JaxEngine) -> None:
    server = await Server.start(make_app(engine, ByteRenderer(), model="tiny"))
    async with aiohttp.ClientSession(server.url) as http:
        stream = await http.post("/generate", json={**LONG, "stream": True})
        await stream.content.readuntil(b"\n\n")
        whole = asyncio.create_task(http.post("/generate", json=LONG))
        while engine_requests(engine) < 2:
            await asyncio.sleep(0.001)
        await server.stop(drain=drain)
        answer = (await (await whole).json())["meta_info"]
        last = json.loads((await stream.text()).strip().split("\n\n")[-2].removeprefix("data: "))["meta_info"]
        assert answer["finish_reason"]["type"] == last["finish_reason"]["type"] == reason
        assert (last["completion_tokens"] == 500) == (reason == "length")
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get("/health")


def engine_requests(engine: JaxEngine) -> int:
    return len(engine._waiting) + sum(len(lane.requests) for lane in engine._lanes)


@pytest.mark.asyncio(loop_scope="session")
async def test_an_environment_sees_the_same_model_through_the_server(engine: JaxEngine, server: Server) -> None:
    environment = load_environment("reverse_text")
    sampling = Sampling(temperature=0.0, max_tokens=12, seed=1)
    client = OpenAIClient(f"{server.url}/v1", "tiny", logprobs=True)
    try:
        far = await evaluate(environment, client, tasks=12, sampling=sampling)
    finally:
        await client.close()
    near = await evaluate(environment, EngineClient(engine, ByteRenderer()), tasks=12, sampling=sampling)
    said = [[t.completion for t in evaluation.trajectories] for evaluation in (far, near)]
    assert said[0] == said[1] and len(said[0]) == 12
    assert far.interval("reward") == near.interval("reward")
    assert all(t.failure is None for t in far.trajectories)


def started(*settings: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rl.cli.main", "serve", *SMALL, "inference.slots=16", *settings]
    environment = {**os.environ, "XLA_FLAGS": "", **variables}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


@pytest.fixture(scope="module")
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = started("port=0", "name=small", "drain=0", "log_requests=true")
    try:
        assert process.stdout is not None
        greeting = [process.stdout.readline() for _ in range(2)]
        found = re.fullmatch(
            r"serving 'small' at (http://127\.0\.0\.1:\d+) \(context 256 tokens\); Ctrl-C stops it\n", greeting[0]
        )
        assert found, greeting
        assert greeting[1].startswith(
            f"try: curl {found[1]}/v1/chat/completions -H 'Content-Type: application/json' -d '"
        )
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def test_the_verb_serves_an_evaluation(process, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    there = ["client=openai", f"client.base_url={process[1]}/v1", "client.model=small"]
    common = ["env=reverse_text", "tasks=6", "sampling.temperature=0", "sampling.max_tokens=8", "run_dir=there"]
    assert main(["eval", *common, *there]) == 0
    summary = json.loads(Path("there", "summary.json").read_text())
    assert (summary["model"], summary["scored"], summary["failures"]) == ("small", 6, {})
    with urllib.request.urlopen(f"{process[1]}/metrics", timeout=60) as response:
        counts = response.read().decode()
    assert 'upswing_requests_total{route="/v1/chat/completions",status="200"} 6' in counts


def test_a_second_server_at_the_same_port_says_so(process) -> None:
    port = process[1].rpartition(":")[2]
    second = started(f"port={port}")
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 2
    assert (
        out == f"error: port {port} of 127.0.0.1 is taken; name another one with port=…, or port=0 for any free one\n"
    )


def test_the_process_takes_new_weights_from_a_directory(process, tmp_path: Path) -> None:
    """As a trainer publishes them: another seed's weights, in Hugging Face's format."""
    sizes = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "ffn": 16, "context": 256}
    policy = make_policy(ModelConfig(name="llama", **sizes), HardwareConfig(), seed=5)
    (tmp_path / "published").mkdir()
    family, settings = policy.origin.family, policy.origin.settings
    save_weights(tmp_path / "published", family, policy.model, policy.params, dtype=lambda name: "float32")
    described = {**family.write_config(family.read_config(settings)), **settings}
    save_config(tmp_path / "published", described, None, "float32")
    prompt = [72, 101, 108, 108, 111]

    def post(path: str, **fields: Any) -> Any:
        body = json.dumps(fields).encode()
        request = urllib.request.Request(f"{process[1]}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.loads(response.read())

    def scores() -> list[float]:
        nothing = {"max_new_tokens": 0}
        fields = {"input_ids": prompt, "sampling_params": nothing, "return_logprob": True, "logprob_start_len": 0}
        return [p for p, _, _ in post("/generate", **fields)["meta_info"]["input_token_logprobs"][1:]]

    before = scores()
    answer = post("/update_weights_from_disk", model_path=str(tmp_path / "published"), weight_version="3")
    assert answer["success"] and answer["message"].endswith("Weight version updated to 3.")
    after = scores()
    expected = asyncio.run(_scored(Scorer(policy.model, policy.params), prompt))
    assert after == pytest.approx(expected, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 1e-3
    drawn = post("/generate", text="Hello", sampling_params={"max_new_tokens": 2})
    assert drawn["meta_info"]["weight_versions"] == [{"version": "3", "start": 0, "end": 2}]


async def _scored(scorer: Scorer, ids: list[int]) -> list[float]:
    return await scorer(ids)


def test_a_process_that_is_told_to_end_does_so_in_order(process) -> None:
    """The last test of the process."""
    served, url = process
    body = json.dumps({**LONG, "input_ids": [1], "stream": True}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as stream:
        stream.readline()
        served.send_signal(signal.SIGTERM)
        out, _ = served.communicate(timeout=60)
        assert b'"finish_reason":{"type":"' in stream.read()
    assert (served.returncode, out.splitlines()[-1]) == (0, "stopped")
    assert re.search(r"POST /v1/chat/completions 200 \d+\.\d{3} s\n", out)
    assert out.count("Traceback") == 0
