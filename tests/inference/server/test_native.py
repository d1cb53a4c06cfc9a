"""`/generate`: SGLang's fields, answered with exactly what the engine drew."""

import asyncio
import itertools
import json
from typing import Any

import aiohttp
import pytest

from rl.inference.engine import TokenSampling
from rl.inference.jax_engine import JaxEngine

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = [5, 6, 7, 8, 9, 10]


async def events(http: aiohttp.ClientSession, path: str, **fields: Any) -> list[dict[str, Any]]:
    async with http.post(path, json={**fields, "stream": True}) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        lines = (await response.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def under_way(http: aiohttp.ClientSession, count: int) -> None:
    """Waits until the server has taken on that many completions."""
    async with asyncio.timeout(10):
        while True:
            async with http.get("/get_load") as response:
                if (await response.json())[0]["num_reqs"] == count:
                    return
            await asyncio.sleep(0.01)


async def test_the_answer_is_what_the_engine_drew(engine: JaxEngine, ask) -> None:
    drawn = await engine.generate(PROMPT, TokenSampling(0.7, top_p=0.9, max_tokens=9, seed=3))
    params = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 9, "sampling_seed": 3}
    answer = await ask("/generate", input_ids=PROMPT, sampling_params=params, return_logprob=True, rid="mine")
    meta = answer["meta_info"]
    assert answer["output_ids"] == drawn.ids and len(drawn.ids) == 9
    assert meta.pop("output_token_logprobs") == [[p, i, None] for p, i in zip(drawn.logprobs, drawn.ids, strict=True)]
    assert meta.pop("plain_logprobs") == drawn.plain_logprobs != drawn.logprobs
    assert 0 < meta.pop("e2e_latency") < 60
    assert meta.pop("cached_tokens") <= 6
    assert meta == {
        "id": "mine",
        "finish_reason": {"type": "length", "length": 9},
        "prompt_tokens": 6,
        "completion_tokens": 9,
        "weight_version": "0",
        "weight_versions": [{"version": "0", "start": 0, "end": 9}],
        "input_token_logprobs": [],
    }


async def test_a_greedy_completion_reports_the_models_own_distribution(engine: JaxEngine, ask) -> None:
    drawn = await engine.generate(PROMPT, TokenSampling(0.0, max_tokens=4))
    greedy = {"temperature": 0, "max_new_tokens": 4}
    fields = {"input_ids": PROMPT, "sampling_params": greedy, "return_logprob": True, "return_text_in_logprobs": True}
    answer = await ask("/generate", **fields)
    assert drawn.logprobs == [0.0] * 4
    triples = answer["meta_info"]["output_token_logprobs"]
    assert [p for p, _, _ in triples] == drawn.plain_logprobs
    assert all(p < -1 for p in drawn.plain_logprobs)
    assert [text for _, _, text in triples] == [bytes([i]).decode(errors="replace") for i in drawn.ids]


async def test_prompts_are_scored_as_the_engine_would_have_drawn_them(engine: JaxEngine, ask) -> None:
    drawn = await engine.generate(PROMPT, TokenSampling(0.7, max_tokens=9, seed=3))
    whole = [*PROMPT, *drawn.ids]
    nothing = {"max_new_tokens": 0}
    answer = await ask("/generate", input_ids=whole, sampling_params=nothing, return_logprob=True, logprob_start_len=0)
    meta = answer["meta_info"]
    scored = meta["input_token_logprobs"]
    assert [token for _, token, _ in scored] == whole and scored[0][0] is None
    assert [p for p, _, _ in scored[6:]] == pytest.approx(drawn.plain_logprobs, abs=1e-5)
    assert (answer["output_ids"], meta["output_token_logprobs"]) == ([], [])
    assert meta["finish_reason"] == {"type": "length", "length": 0}
    both = {"sampling_params": {"max_new_tokens": 2}, "return_logprob": True, "logprob_start_len": 4}
    some = (await ask("/generate", input_ids=[whole, PROMPT], **both))[0]["meta_info"]
    assert some["input_token_logprobs"] == [[None, whole[4], None], *scored[5:]]
    assert len(some["output_token_logprobs"]) == 2
    beyond = await ask("/generate", input_ids=[1] * 513, **{**both, "sampling_params": nothing}, status=400)
    assert beyond["error"]["message"] == "context length: the prompt has 513 tokens; at most 512 can be scored"


async def test_many_prompts_and_many_completions_come_in_order(engine: JaxEngine, ask) -> None:
    fields = {"input_ids": [PROMPT, [1, 2]], "rid": ["a", "b"]}
    each = [{"max_new_tokens": 3, "n": 2, "sampling_seed": 5}, {"max_new_tokens": 2, "sampling_seed": 6}]
    answers = await ask("/generate", **fields, sampling_params=each)
    assert [answer["meta_info"]["id"] for answer in answers] == ["a_0", "a_1", "b"]
    assert [len(answer["output_ids"]) for answer in answers] == [3, 3, 2]
    first = await engine.generate(PROMPT, TokenSampling(max_tokens=3, seed=5))
    third = await engine.generate([1, 2], TokenSampling(max_tokens=2, seed=6))
    assert (answers[0]["output_ids"], answers[2]["output_ids"]) == (first.ids, third.ids)
    assert answers[1]["output_ids"] != first.ids, "a sample of its own"
    again = await ask("/generate", **fields, sampling_params=each)
    assert [a["output_ids"] for a in again] == [a["output_ids"] for a in answers], "seeded, all of them"
    alone = await ask("/generate", input_ids=[[1, 2]], rid="x", sampling_params={"max_new_tokens": 1})
    assert len(alone) == 1 and alone[0]["meta_info"]["id"] == "x_0", "a list of one is a list"


async def test_text_goes_in_and_out(ask) -> None:
    same = {"sampling_params": {"max_new_tokens": 5, "temperature": 0}}
    by_text = await ask("/generate", text="héllo", **same)
    by_ids = await ask("/generate", input_ids=list("héllo".encode()), **same)
    assert by_text["output_ids"] == by_ids["output_ids"]
    assert by_text["text"] == by_ids["text"] == bytes(by_ids["output_ids"]).decode(errors="replace")
    assert by_text["meta_info"]["prompt_tokens"] == 6


async def test_stops_end_a_completion_and_say_what_matched(engine: JaxEngine, ask) -> None:
    free = await engine.generate(PROMPT, TokenSampling(max_tokens=40, seed=1))
    at = next(i for i in range(6, 40) if 32 <= free.ids[i] < 127 and free.ids[i] not in free.ids[:i])
    drawing = {"max_new_tokens": 40, "sampling_seed": 1}
    by_id = await ask("/generate", input_ids=PROMPT, sampling_params={**drawing, "stop_token_ids": [free.ids[at]]})
    by_text = await ask("/generate", input_ids=PROMPT, sampling_params={**drawing, "stop": chr(free.ids[at])})
    assert by_id["output_ids"] == by_text["output_ids"] == free.ids[: at + 1], "the stop is part of the tokens"
    assert by_id["text"] == by_text["text"] == bytes(free.ids[:at]).decode(errors="replace"), "and not of the text"
    assert by_id["meta_info"]["finish_reason"] == {"type": "stop", "matched": free.ids[at]}
    assert by_text["meta_info"]["finish_reason"] == {"type": "stop", "matched": chr(free.ids[at])}


async def test_the_models_own_end_can_be_ignored(ask) -> None:
    ending = {"max_new_tokens": 6, "temperature": 0, "logit_bias": {"256": 100}}
    ended = await ask("/generate", input_ids=PROMPT, sampling_params=ending)
    assert (ended["output_ids"], ended["text"]) == ([256], "")
    assert ended["meta_info"]["finish_reason"] == {"type": "stop", "matched": 256}
    going_on = await ask("/generate", input_ids=PROMPT, sampling_params={**ending, "ignore_eos": True})
    assert going_on["output_ids"] == [256] * 6
    later = await ask("/generate", input_ids=PROMPT, sampling_params={**ending, "min_new_tokens": 3})
    assert later["output_ids"].index(256) == 3 and len(later["output_ids"]) == 4


async def test_a_stream_repeats_everything_with_every_event(http: aiohttp.ClientSession, ask) -> None:
    fields = {
        "input_ids": PROMPT,
        "sampling_params": {"max_new_tokens": 10, "sampling_seed": 4},
        "return_logprob": True,
    }
    whole = await ask("/generate", **fields)
    growing = await events(http, "/generate", **fields)
    assert len(growing) >= 3, "four tokens at a time"
    for before, after in itertools.pairwise(growing):
        length = len(before["output_ids"])
        assert before["output_ids"] == after["output_ids"][:length] and length < len(after["output_ids"])
        assert before["meta_info"]["finish_reason"] is None
        logprobs = [event["meta_info"]["output_token_logprobs"] for event in (before, after)]
        assert logprobs[0] == logprobs[1][:length] and len(logprobs[0]) == length
    for volatile in ("e2e_latency", "id", "cached_tokens"):
        del whole["meta_info"][volatile], growing[-1]["meta_info"][volatile]
    assert growing[-1] == whole


async def test_a_stream_of_many_says_which_each_event_is_of(http: aiohttp.ClientSession, ask) -> None:
    fields = {"input_ids": [PROMPT, [1]], "sampling_params": {"max_new_tokens": 6, "sampling_seed": 4}}
    last = {event["index"]: event["output_ids"] for event in await events(http, "/generate", **fields)}
    assert [last[0], last[1]] == [answer["output_ids"] for answer in await ask("/generate", **fields)]


async def test_an_aborted_request_answers_with_what_it_has(http: aiohttp.ClientSession, ask) -> None:
    long = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 500, "ignore_eos": True}, "return_logprob": True}
    async with http.post("/generate", json={**long, "rid": "streamed", "stream": True}) as response:
        await response.content.readuntil(b"\n\n")
        await ask("/abort_request", rid="streamed")
        *_, last, done = (await response.text()).strip().split("\n\n")
    event = json.loads(last.removeprefix("data: "))
    assert done == "data: [DONE]"
    assert event["meta_info"]["finish_reason"]["type"] == "abort"
    assert 4 <= len(event["output_ids"]) < 500
    assert len(event["meta_info"]["output_token_logprobs"]) == len(event["output_ids"])


async def test_abort_finds_all_completions_of_a_request_and_no_others(engine: JaxEngine, http, ask) -> None:
    await engine.pause("in_place")
    try:
        long = {"max_new_tokens": 3, "n": 2}
        first = asyncio.create_task(ask("/generate", input_ids=PROMPT, sampling_params=long, rid="one"))
        second = asyncio.create_task(ask("/generate", input_ids=PROMPT, sampling_params=long, rid="one more"))
        await under_way(http, 4)
        await ask("/generate", input_ids=PROMPT, rid="one", status=400)
        await ask("/abort_request", rid="one")
        aborted = await asyncio.wait_for(first, 10)
        assert not second.done()
    finally:
        await engine.resume()
    assert [a["meta_info"]["finish_reason"]["type"] for a in aborted] == ["abort", "abort"]
    assert [a["output_ids"] for a in aborted] == [[], []]
    assert [a["meta_info"]["finish_reason"]["type"] for a in await second] == ["length", "length"]
    await ask("/abort_request", rid="unknown")


async def test_abort_finds_all_prompts_of_a_batch(engine: JaxEngine, http, ask) -> None:
    await engine.pause("in_place")
    try:
        batch = asyncio.create_task(ask("/generate", input_ids=[PROMPT, [1]], sampling_params={"n": 2}, rid="all"))
        await under_way(http, 4)
        await ask("/generate", input_ids=PROMPT, rid="all", status=400)
        await ask("/generate", input_ids=PROMPT, rid="all_1", status=400)
        await ask("/abort_request", rid="all_1")
        await ask("/abort_request", rid="all")
        aborted = await asyncio.wait_for(batch, 10)
    finally:
        await engine.resume()
    assert [a["meta_info"]["id"] for a in aborted] == ["all_0_0", "all_0_1", "all_1_0", "all_1_1"]
    assert {a["meta_info"]["finish_reason"]["type"] for a in aborted} == {"abort"}
    await ask("/abort_request", abort_all=True)


async def test_more_than_the_limit_is_refused_until_there_is_room(engine: JaxEngine, http, ask) -> None:
    await engine.pause("in_place")
    try:
        waiting = asyncio.create_task(
            ask("/generate", input_ids=PROMPT, sampling_params={"max_new_tokens": 1, "n": 38})
        )
        await under_way(http, 38)
        async with http.post("/generate", json={"input_ids": PROMPT, "sampling_params": {"n": 3}}) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            message = (await response.json())["error"]["message"]
        assert message == (
            "38 completions are under way and 3 more were asked for, but at most 40 are taken on; try again later"
        )
        fitting = asyncio.create_task(ask("/generate", input_ids=[PROMPT] * 2, sampling_params={"max_new_tokens": 1}))
        await under_way(http, 40)
    finally:
        await engine.resume()
    assert (len(await waiting), len(await fitting)) == (38, 2)


REFUSED = {
    "{}": "expected exactly one of input_ids and text; found neither",
    '{"input_ids": [1], "text": "a"}': "expected exactly one of input_ids and text; found both",
    '{"input_ids": []}': "input_ids is []; expected a list of at least one token id",
    '{"input_ids": "abc"}': 'input_ids is "abc"; expected a list of at least one token id',
    '{"input_ids": [1, 264]}': "input_ids[1] is 264; expected a token id in 0 … 263",
    '{"input_ids": [true]}': "input_ids[0] is true; expected a token id in 0 … 263",
    '{"input_ids": [1.0]}': "input_ids[0] is 1.0; expected a token id in 0 … 263",
    '{"input_ids": [[1], []]}': "input_ids[1] is []; expected a list of at least one token id",
    '{"text": ""}': 'text is ""; expected a text or a list of texts, none of them empty',
    '{"input_ids": [1], "sampling_params": 3}': "sampling_params is 3; expected an object",
    '{"input_ids": [1], "sampling_params": [{}]}': "sampling_params is [{}]; expected an object, or a list of "
    "as many as there are prompts",
    '{"input_ids": [1], "top_logprobs_num": 2}': "top_logprobs_num is 2; expected 0: only the "
    "log-probabilities of the sampled tokens are kept",
    '{"input_ids": [1], "input_id": [1]}': "unknown field input_id; did you mean input_ids?",
    '{"input_ids": [1], "rid": 3}': "rid is 3; expected a text",
    '{"input_ids": [[1], [2]], "rid": ["a", "a"]}': 'rid is ["a", "a"]; expected a text, or a list of 2 different ones',
    '{"input_ids": [1], "stream": "yes"}': 'stream is "yes"; expected true or false',
    "[1]": "the body is [1]; expected one JSON object",
    "{": "the body is no JSON: Expecting property name enclosed in double quotes: line 1 column 2 "
    "(char 1); expected one object",
    '{"input_ids": [NaN]}': "the body is no JSON: NaN is no number that JSON has",
}

REFUSED_SAMPLING = {
    '"temperature": -1': "temperature is -1; expected a number of at least 0",
    '"temperature": 1e999': "temperature is Infinity; expected a number of at least 0",
    '"temperature": "hot"': 'temperature is "hot"; expected a number of at least 0',
    '"top_p": 0': "top_p is 0; expected a number above 0 and at most 1",
    '"max_new_tokens": 1.5': "max_new_tokens is 1.5; expected a whole number of at least 0",
    '"n": 0': "n is 0; expected a whole number in 1 … 1024",
    '"min_new_tokens": 9, "max_new_tokens": 3': "min_new_tokens is 9; expected at most the 3 tokens of the completion",
    '"stop": ["a", ""]': 'stop is ["a", ""]; expected a text or a list of texts, none of them empty',
    '"stop_token_ids": [264]': "stop_token_ids[0] is 264; expected a token id in 0 … 263",
    '"logit_bias": {"264": 1}': 'logit_bias has "264": 1; expected an object from token ids (0 … 263) to numbers',
    '"max_tokens": 3': "unknown field max_tokens; did you mean max_new_tokens?",
    '"frequency_penalty": 0.5': "frequency_penalty is 0.5; expected 0: penalties are not supported",
    '"regex": "a+"': 'regex is "a+"; expected null: constrained decoding is not supported',
}


async def refusal(http: aiohttp.ClientSession, body: str) -> str:
    headers = {"Content-Type": "application/json"}
    async with http.post("/generate", data=body.encode(), headers=headers) as response:
        answer = await response.json()
        assert (response.status, list(answer)) == (400, ["error"])
        return answer["error"]["message"]


@pytest.mark.parametrize("body", REFUSED)
async def test_what_does_not_fit_is_refused_with_its_field(body: str, http: aiohttp.ClientSession) -> None:
    assert await refusal(http, body) == REFUSED[body]


@pytest.mark.parametrize("params", REFUSED_SAMPLING)
async def test_sampling_that_does_not_fit_is_refused_with_its_field(params: str, http: aiohttp.ClientSession) -> None:
    message = await refusal(http, f'{{"input_ids": [1], "sampling_params": {{{params}}}}}')
    assert message.replace("sampling_params.", "") == REFUSED_SAMPLING[params]


async def test_brackets_without_end_are_refused(http: aiohttp.ClientSession) -> None:
    assert "nested too deeply" in await refusal(http, '{"input_ids": ' + "[" * 4000 + "]" * 4000 + "}")


async def test_a_prompt_that_does_not_fit_the_context_is_refused(ask) -> None:
    answer = await ask("/generate", input_ids=[1] * 512, status=400)
    assert answer["error"]["message"].startswith("context length: the prompt has 512 tokens")
    exactly = await ask("/generate", input_ids=[1] * 511)
    assert exactly["meta_info"]["finish_reason"] == {"type": "length", "length": 1}, "what the context leaves"


async def test_bodies_have_a_size_and_a_type(http: aiohttp.ClientSession) -> None:
    async with http.post("/generate", json={"input_ids": [1] * 5000}) as response:
        assert response.status == 413
        assert "the body is too large: Maximum request body size 10000 exceeded" in await response.text()
    async with http.post("/generate", data=b'{"input_ids": [1]}') as response:
        assert response.status == 415
        assert "expected application/json" in (await response.json())["error"]["message"]
    async with http.get("/generate") as response:
        assert (response.status, (await response.json())["error"]["message"]) == (
            405,
            "/generate takes POST; found GET",
        )
    async with http.post("/generation", json={}) as response:
        assert response.status == 404
