"""OpenAI's routes, as the official client sees them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from envs import OpenAIClient
from envs.render import ByteRenderer
from envs.types import Message, Sampling
from rl.inference.engine import EngineError, TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.inference.server.lifecycle import Server
from rl.rollout.client import EngineClient

pytestmark = pytest.mark.asyncio(loop_scope="session")

HELLO: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
PROMPT = ByteRenderer().prompt(HELLO)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLING = 'Let me see. <tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'


def client_of(url: str, **arguments: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", **{"api_key": "none", "max_retries": 0, **arguments})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(server.url) as client:
        yield client


def text_of(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


async def test_a_chat_is_the_engines_completion_of_the_rendered_prompt(engine: JaxEngine, client) -> None:
    drawn = await engine.generate(PROMPT, TokenSampling(0.8, max_tokens=7, stop_ids=(256,), seed=11))
    answer = await client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0.8, max_tokens=7, seed=11, logprobs=True,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    (choice,) = answer.choices
    assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", "tiny", "chatcmpl-")
    assert (choice.message.role, choice.message.content) == ("assistant", text_of(drawn.ids))
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert [token.logprob for token in choice.logprobs.content] == drawn.logprobs
    assert [token.token for token in choice.logprobs.content] == [text_of([i]) for i in drawn.ids]
    assert answer.prompt_token_ids == PROMPT and choice.token_ids == drawn.ids
    assert choice.weight_versions == [{"version": "0", "start": 0, "end": 7}]
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(PROMPT), 7, len(PROMPT) + 7)


async def test_our_own_client_records_the_exact_tokens(engine: JaxEngine, server: Server) -> None:
    sampling = Sampling(temperature=0.9, max_tokens=8, seed=21)
    client = OpenAIClient(f"{server.url}/v1", "tiny", logprobs=True, extra_body={"return_token_ids": True})
    try:
        far = await client.complete(HELLO, sampling=sampling)
    finally:
        await client.close()
    near = await EngineClient(engine, ByteRenderer()).complete(HELLO, sampling=sampling)
    assert (far.prompt_ids, far.completion_ids) == (near.prompt_ids, near.completion_ids) and near.completion_ids
    assert (far.logprobs, far.versions) == (near.logprobs, near.versions)
    assert (far.message, far.finish_reason) == (near.message, near.finish_reason)


async def test_the_synchronous_client_works_too(server: Server) -> None:
    def talk() -> tuple[str, list[str]]:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            common: dict[str, Any] = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_completion_tokens": 9}
            whole = client.chat.completions.create(**common).choices[0].message.content
            pieces = [c.choices[0].delta.content or "" for c in client.chat.completions.create(**common, stream=True)]
            return whole, pieces

    whole, pieces = await asyncio.to_thread(talk)
    assert "".join(pieces) == whole != ""


async def test_a_streamed_chat_adds_up_to_the_whole(client) -> None:
    common: dict[str, Any] = {
        "model": "tiny", "messages": HELLO, "max_tokens": 10, "seed": 3, "n": 2, "logprobs": True,
        "extra_body": {"return_token_ids": True},
    }  # fmt: skip
    whole = await client.chat.completions.create(**common)
    stream = await client.chat.completions.create(**common, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"} and len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert chunks[0].prompt_token_ids == PROMPT
    for expected in whole.choices:
        own = [c for chunk in chunks for c in chunk.choices if c.index == expected.index]
        assert (own[0].delta.role, own[0].delta.content) == ("assistant", "")
        assert "".join(c.delta.content or "" for c in own) == expected.message.content
        assert [c.finish_reason for c in own if c.finish_reason] == ["length"] and own[-1].finish_reason == "length"
        tokens = [token for c in own if c.logprobs for token in c.logprobs.content]
        assert tokens == expected.logprobs.content
        assert [i for c in own for i in getattr(c, "token_ids", [])] == expected.token_ids
    assert whole.choices[0].message.content != whole.choices[1].message.content


async def test_a_tool_call_is_parsed(scripted) -> None:
    script, url = await scripted(CALLING)
    async with client_of(url) as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, tools=[WEATHER], tool_choice="auto")
        (choice,) = answer.choices
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
        assert (call.type, call.function.name, call.function.arguments) == ("function", "weather", '{"city": "Ulm"}')
        assert script.asked[0][0] == ByteRenderer().prompt(HELLO, [WEATHER])
        result: Message = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        dumped = choice.message.model_dump()
        again = await client.chat.completions.create(model="tiny", messages=[*HELLO, dumped, result], tools=[WEATHER])
        said: Message = {"role": "assistant", "content": "Let me see.", "tool_calls": [call.model_dump()]}
        assert script.asked[1][0] == ByteRenderer().prompt([*HELLO, said, result], [WEATHER])
        assert again.choices[0].message.tool_calls[0].id != call.id, "no two calls have the same id"
        plain = await client.chat.completions.create(model="tiny", messages=HELLO, tools=[WEATHER], tool_choice="none")
        assert script.asked[2][0] == PROMPT and plain.choices[0].finish_reason == "tool_calls"


async def test_a_streamed_tool_call_is_no_text(scripted) -> None:
    _, url = await scripted(CALLING)
    async with client_of(url) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, tools=[WEATHER], stream=True)
        choices = [chunk.choices[0] async for chunk in stream]
    content = [c.delta.content for c in choices if c.delta.content]
    assert "".join(content).strip() == "Let me see." and len(content) > 2, "as it is said"
    (calls,) = [c.delta.tool_calls for c in choices if c.delta.tool_calls]
    assert [(c.index, c.function.name, c.function.arguments) for c in calls] == [(0, "weather", '{"city": "Ulm"}')]
    assert choices[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_stop_text_is_not_part_of_the_answer(streamed: bool, engine: JaxEngine, client) -> None:
    free = await engine.generate(PROMPT, TokenSampling(max_tokens=40, seed=2))
    plain = [i for i in range(3, 39) if all(32 <= token < 127 for token in free.ids[i : i + 2])]
    at = plain[0]
    stop = text_of(free.ids[at : at + 2])
    common: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 40, "seed": 2, "stop": [stop, "zzz"]}
    if streamed:
        choices = [chunk.choices[0] async for chunk in await client.chat.completions.create(**common, stream=True)]
        content, reason = "".join(c.delta.content or "" for c in choices), choices[-1].finish_reason
    else:
        choice = (await client.chat.completions.create(**common)).choices[0]
        content, reason = choice.message.content, choice.finish_reason
    assert (content, reason) == (text_of(free.ids[:at]), "stop")


async def test_completions_continue_text_and_tokens(engine: JaxEngine, client) -> None:
    drawn = await engine.generate([72, 105], TokenSampling(max_tokens=6, stop_ids=(256,), seed=4))
    for prompt in ("Hi", [72, 105]):
        answer = await client.completions.create(
            model="tiny", prompt=prompt, max_tokens=6, seed=4, logprobs=1, extra_body={"return_token_ids": True}
        )
        (choice,) = answer.choices
        assert (choice.text, choice.finish_reason) == (text_of(drawn.ids), "length")
        assert choice.logprobs.token_logprobs == drawn.logprobs
        assert choice.logprobs.tokens == [text_of([i]) for i in drawn.ids]
        assert choice.logprobs.text_offset[:3] == [0, 1, 2]
        assert (choice.prompt_token_ids, choice.token_ids) == ([72, 105], drawn.ids)
    several = await client.completions.create(model="tiny", prompt=["Hi", "Ho"], n=2, seed=4, max_tokens=6)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == text_of(drawn.ids)
    assert (several.usage.prompt_tokens, several.usage.completion_tokens) == (4, 24)
    stream = await client.completions.create(model="tiny", prompt="Hi", max_tokens=6, seed=4, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == text_of(drawn.ids)
    default = await client.completions.create(model="tiny", prompt="Hi", extra_body={"ignore_eos": True})
    assert default.usage.completion_tokens == 16, "OpenAI's default"


async def test_there_is_one_model(client) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).max_model_len == 512
    with pytest.raises(openai.NotFoundError, match="the model 'gpt' does not exist; this server has 'tiny'"):
        await client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gpt", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no messages": ({"messages": []}, "messages", "messages is []; expected a list of at least one message"),
    "role": (
        {"messages": [{"role": "robot", "content": "hi"}]},
        "messages[0].role",
        'messages[0].role is "robot"; expected system or developer or user or assistant or tool',
    ),
    "content": (
        {"messages": [{"role": "user", "content": 3}]},
        "messages[0].content",
        "messages[0].content is 3; expected a text",
    ),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        'messages[0].content[0].type is "image_url"; expected "text": this model reads nothing else',
    ),
    "unknown field of a message": (
        {"messages": [{"role": "user", "content": "hi", "contents": "ho"}]},
        "messages[0].contents",
        "unknown field messages[0].contents; did you mean messages[0].content?",
    ),
    "tool": (
        {"tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
        "tools[0].function.name is null; expected the name of the function",
    ),
    "forced tool": (
        {"tools": [WEATHER], "tool_choice": "required"},
        "tool_choice",
        'tool_choice is "required"; expected "auto" or "none": the model cannot be made to call a tool',
    ),
    "top_logprobs": (
        {"logprobs": True, "top_logprobs": 5},
        "top_logprobs",
        "top_logprobs is 5; expected 0: only the log-probabilities of the sampled tokens are kept",
    ),
    "json": (
        {"response_format": {"type": "json_object"}},
        "response_format",
        'response_format is {"type": "json_object"}; expected {"type": "text"}: constrained decoding is not supported',
    ),
    "temperature": ({"temperature": -0.1}, "temperature", "temperature is -0.1; expected a number of at least 0"),
    "n": ({"n": 2000}, "n", "n is 2000; expected a whole number in 1 … 1024"),
    "max_tokens": ({"max_tokens": 0}, "max_tokens", "max_tokens is 0; expected a whole number of at least 1"),
    "unknown": (
        {"extra_body": {"temprature": 1}},
        "temprature",
        "unknown field temprature; did you mean temperature?",
    ),
    "penalty": (
        {"presence_penalty": 1.0},
        "presence_penalty",
        "presence_penalty is 1.0; expected 0: penalties are not supported",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_does_not_fit_raises_the_clients_own_error(case: str, client) -> None:
    fields, param, message = REFUSED[case]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**{"model": "tiny", "messages": HELLO, **fields})
    assert caught.value.body == {"message": message, "type": "invalid_request_error", "param": param, "code": None}


async def test_a_prompt_that_is_too_long_has_its_own_code(client) -> None:
    long: list[Message] = [{"role": "user", "content": "x" * 600}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="context length: the prompt has 603 tokens") as caught:
            await client.chat.completions.create(model="tiny", messages=long, stream=stream)
        assert caught.value.code == "context_length_exceeded"


async def test_other_failures_raise_their_own_classes(scripted, client) -> None:
    _, url = await scripted("hello", failure=EngineError("the engine stopped"), app={"api_key": "secret"})
    async with client_of(url, api_key="wrong") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()
    async with client_of(url, api_key="secret") as friend:
        with pytest.raises(openai.InternalServerError, match="the engine stopped"):
            await friend.chat.completions.create(model="tiny", messages=HELLO)
        stream = await friend.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        pieces = []
        with pytest.raises(openai.APIError, match="the engine stopped"):
            async for chunk in stream:
                pieces += [chunk.choices[0].delta.content or ""]
        assert "".join(pieces) == "hel", "what came before it"


async def test_messages_in_parts_and_developers_are_understood(engine: JaxEngine, client) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    answer = await client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=1, extra_body={"return_token_ids": True}
    )
    assert answer.prompt_token_ids == PROMPT


async def test_what_is_no_unicode_survives(scripted) -> None:
    """Half a surrogate pair in a message, half a character in the answer."""
    script, url = await scripted("\ud83d")
    body = rb'{"messages": [{"role": "user", "content": "\ud800"}], "logprobs": true}'
    async with aiohttp.ClientSession(url) as http:
        headers = {"Content-Type": "application/json"}
        async with http.post("/v1/chat/completions", data=body, headers=headers) as response:
            (choice,) = (await response.json())["choices"]
    assert choice["message"]["content"] == "\ufffd\ufffd\ufffd"
    assert [token["bytes"] for token in choice["logprobs"]["content"][:3]] == [None] * 3
    assert script.asked[0][0] == [258, 0xED, 0xA0, 0x80, 256, 259]
