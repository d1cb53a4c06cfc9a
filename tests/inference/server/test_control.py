"""Pause, weights, health, metrics: what a trainer and a supervisor do with a server."""

import asyncio
import json

import aiohttp
import pytest

from rl.inference.engine import EngineBusyError, EngineError, TokenSampling
from rl.inference.jax_engine import JaxEngine

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = [5, 6, 7, 8, 9, 10]
LONG = {"max_new_tokens": 480, "ignore_eos": True, "sampling_seed": 1}


async def begun(http: aiohttp.ClientSession, rid: str) -> tuple[aiohttp.ClientResponse, dict]:
    """A long stream, and its first event."""
    fields = {"input_ids": PROMPT, "sampling_params": LONG, "stream": True, "rid": rid}
    response = await http.post("/generate", json=fields)
    first = await response.content.readuntil(b"\n\n")
    return response, json.loads(first.removeprefix(b"data: "))


async def last_event(response: aiohttp.ClientResponse) -> dict:
    *_, last, done = (await response.text()).strip().split("\n\n")
    assert done == "data: [DONE]"
    return json.loads(last.removeprefix("data: "))


@pytest.mark.parametrize("mode", ["in_place", "retract"])
async def test_what_is_paused_goes_on_where_it_was(mode: str, engine: JaxEngine, http, ask) -> None:
    alone = await engine.generate(PROMPT, TokenSampling(max_tokens=480, seed=1))
    response, first = await begun(http, mode)
    await ask("/pause_generation", mode=mode)
    waiting = asyncio.create_task(ask("/generate", input_ids=PROMPT, sampling_params={"max_new_tokens": 1}))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    async with http.get("/health") as health, http.get("/health_generate") as generate:
        assert (health.status, generate.status) == (200, 503)
        assert f"generation is paused ({mode})" in await generate.text()
    assert await ask("/continue_generation") == {
        "status": "ok",
        "message": "Generation continued successfully.",
    }
    last = await last_event(response)
    assert last["output_ids"] == alone.ids and len(first["output_ids"]) < 480
    assert len((await waiting)["output_ids"]) == 1


async def test_pausing_aborts_unless_told_otherwise(http, ask) -> None:
    response, _ = await begun(http, "paused")
    assert (await ask("/pause_generation"))["status"] == "ok"
    last = await last_event(response)
    await ask("/continue_generation")
    assert last["meta_info"]["finish_reason"] == {"type": "abort", "message": "the request was aborted"}
    assert 4 <= len(last["output_ids"]) < 480


async def test_the_cache_is_not_flushed_under_those_who_keep_it(http, ask) -> None:
    response, _ = await begun(http, "kept")
    await ask("/pause_generation", mode="in_place")
    refused = await ask("/flush_cache", status=400)
    assert refused["error"]["message"].startswith("1 completions are paused in_place and keep their cache; continue")
    await ask("/continue_generation")
    assert (await ask("/flush_cache"))["success"] is True
    async with http.get("/flush_cache") as flushed:  # some trainers ask so
        assert (await flushed.json())["success"] is True
    await last_event(response)


async def test_weights_change_under_way_and_every_token_says_its_version(engine: JaxEngine, http, ask) -> None:
    alone = await engine.generate(PROMPT, TokenSampling(max_tokens=480, seed=1))
    response, _ = await begun(http, "mixed")
    await ask("/pause_generation", mode="in_place")
    answer = await ask("/update_weights_from_disk", model_path="second", weight_version="7", flush_cache=False)
    assert answer == {
        "success": True,
        "message": "Weights of second loaded. Weight version updated to 7.",
        "num_paused_requests": 1,
    }
    await ask("/continue_generation")
    mixed = await last_event(response)
    old, new = mixed["meta_info"]["weight_versions"]
    assert old == {"version": "0", "start": 0, "end": new["start"]} and new == {
        "version": "7",
        "start": old["end"],
        "end": 480,
    }
    assert mixed["output_ids"][: old["end"]] == alone.ids[: old["end"]]
    assert mixed["output_ids"] != alone.ids and mixed["meta_info"]["weight_version"] == "7"
    refused = await ask("/update_weights_from_disk", model_path="first", weight_version=6, status=400)
    assert refused["success"] is False and refused["message"].startswith(
        "weight_version is 6, but the server has 7; expected 7 or more"
    )
    again = await ask("/update_weights_from_disk", model_path="second", weight_version=7)
    assert again["success"] is True, "publishing twice is no error"
    following = await ask("/update_weights_from_disk", model_path="first")
    assert following["message"] == "Weights of first loaded. Weight version updated to 8."
    relabelled = await ask("/update_weight_version", new_version="0")
    assert relabelled == {"success": True, "message": "Weight version updated to 0", "new_version": "0"}
    assert await engine.generate(PROMPT, TokenSampling(max_tokens=480, seed=1)) == alone


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "model_path is null; expected a folder of weights"),
        ({"model_path": "third"}, "model_path third: there are no weights at third"),
        ({"model_path": "first", "weight_version": "v2"}, 'weight_version is "v2"; expected a whole number of at '),
        ({"model_path": "first", "load_format": "dummy"}, 'load_format is "dummy"; expected "auto"'),
        ({"model_path": "first", "weights": "x"}, "unknown field weights"),
    ],
)  # fmt: skip
async def test_weights_that_cannot_be_taken_change_nothing(fields: dict, message: str, engine: JaxEngine, ask) -> None:
    answer = await ask("/update_weights_from_disk", **fields, status=400)
    assert answer["success"] is False and answer["message"].startswith(message)
    assert engine.version == 0


async def test_scores_follow_the_weights(ask) -> None:
    fields = {"input_ids": PROMPT, "return_logprob": True, "logprob_start_len": 0}
    nothing = {"max_new_tokens": 0}

    async def scores() -> list:
        answer = await ask("/generate", **fields, sampling_params=nothing)
        return [p for p, _, _ in answer["meta_info"]["input_token_logprobs"]][1:]

    first = await scores()
    await ask("/update_weights_from_disk", model_path="second")
    second = await scores()
    await ask("/update_weights_from_disk", model_path="first")
    await ask("/update_weight_version", new_version=0)
    assert await scores() == first and max(abs(a - b) for a, b in zip(first, second, strict=True)) > 0.1


async def test_a_server_without_weights_or_scores_says_so(scripted) -> None:
    _, url = await scripted("hello")
    async with aiohttp.ClientSession(url) as http:
        fields = {"input_ids": [1], "return_logprob": True, "logprob_start_len": 0}
        async with http.post("/generate", json=fields) as response:
            assert response.status == 400
            assert "this server cannot score prompts; expected -1" in await response.text()
        async with http.post("/update_weights_from_disk", json={"model_path": "x"}) as response:
            assert response.status == 501


async def test_the_model_and_the_server_describe_themselves(http: aiohttp.ClientSession) -> None:
    for path in ("/model_info", "/get_model_info"):
        async with http.get(path) as response:
            assert await response.json() == {
                "model_path": "tiny",
                "tokenizer_path": "tiny",
                "is_generation": True,
                "preferred_sampling_params": None,
                "weight_version": "0",
                "context_length": 512,
                "vocab_size": 264,
            }
    async with http.get("/server_info") as response:
        info = await response.json()
        assert (info["server"], info["max_running_requests"], info["paused"]) == ("upswing", 40, None)
    async with http.get("/health_generate") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})


def sample_of(text: str, name: str) -> float:
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name)))


async def test_metrics_count(http: aiohttp.ClientSession, ask) -> None:
    async def scrape() -> str:
        async with http.get("/metrics") as response:
            assert response.content_type == "text/plain"
            return await response.text()

    await ask("/generate", input_ids=PROMPT, sampling_params={"max_new_tokens": 4})
    before = await scrape()
    await ask("/generate", input_ids=PROMPT, sampling_params={"max_new_tokens": 4, "n": 2, "ignore_eos": True})
    await ask("/generate", input_ids=[], status=400)
    after = await scrape()
    changes = {
        'upswing_requests_total{route="/generate",status="200"}': 1,
        "upswing_prompt_tokens_total": 12,
        "upswing_completion_tokens_total": 8,
        "upswing_compilations": 0,
        "upswing_requests_under_way": 0,
    }
    for name, change in changes.items():
        assert sample_of(after, name) - sample_of(before, name) == change, name
    assert sample_of(after, 'upswing_requests_total{route="/generate",status="400"}') >= 1
    kinds = [line.split()[2:] for line in after.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len({name for name, _ in kinds}) and {kind for _, kind in kinds} == {"counter", "gauge"}


async def test_a_failed_engine_is_unhealthy_and_says_why(scripted) -> None:
    _, url = await scripted("hello", failure=EngineError("the engine stopped: out of memory"))
    async with aiohttp.ClientSession(url) as http:
        async with http.get("/health") as response:
            assert response.status == 503 and "out of memory" in await response.text()
        async with http.post("/generate", json={"input_ids": [1]}) as response:
            answer = await response.json()
            assert (response.status, answer["error"]["message"]) == (500, "the engine stopped: out of memory")


async def test_a_busy_engine_asks_to_come_again(scripted) -> None:
    _, url = await scripted("", failure=EngineBusyError("9 requests wait"))
    async with aiohttp.ClientSession(url) as http:
        for path, fields in (("/generate", {"input_ids": [1]}), ("/v1/completions", {"prompt": "a", "stream": True})):
            async with http.post(path, json=fields) as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "1")
                assert "9 requests wait" in await response.text()


async def test_who_has_no_key_gets_nothing_but_health(scripted) -> None:
    _, url = await scripted("hello", app={"api_key": "secret"})
    async with aiohttp.ClientSession(url) as http:
        statuses = {}
        for given in ("", "Bearer wrong", "Bearer secret"):
            headers = {"Authorization": given} if given else {}
            async with http.get("/v1/models", headers=headers) as response:
                statuses[given] = response.status
        assert statuses == {"": 401, "Bearer wrong": 401, "Bearer secret": 200}
        async with http.get("/health") as health, http.get("/server_info") as info:
            assert (health.status, info.status) == (200, 401)
            assert "Authorization: Bearer KEY" in await info.text()
