import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from envs import ConfigError, ContextLengthError, InfrastructureError, OpenAIClient, Sampling
from envs.clients.openai_wire import retry_after
from envs.types import Message

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[str]]
Connect = Callable[..., Awaitable[OpenAIClient]]

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]


def answer(content: str | None = "Hi", finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}


def replying(*replies: web.Response | dict[str, Any]) -> tuple[Handler, list[dict[str, Any]]]:
    """A handler that gives the replies one after the other, the last one for ever; and what it was asked."""
    asked: list[dict[str, Any]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        reply = replies[min(len(asked), len(replies)) - 1]
        return web.json_response(reply) if isinstance(reply, dict) else web.Response(**vars_of(reply))

    return handler, asked


def vars_of(reply: web.Response) -> dict[str, Any]:
    """A response can be sent once only: what to make another of."""
    return {"status": reply.status, "body": reply.body, "headers": reply.headers}


def status(code: int, text: str = "", **headers: str) -> web.Response:
    return web.Response(status=code, body=text.encode(), headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest_asyncio.fixture
async def connect(serve: Serve) -> AsyncIterator[Connect]:
    clients: list[OpenAIClient] = []

    async def start(handler: Handler, **arguments: Any) -> OpenAIClient:
        arguments = {"backoff": 0.001, "timeout": 10.0, "api_key": "", **arguments}
        clients.append(OpenAIClient(await serve(handler), "tiny", **arguments))
        return clients[-1]

    yield start
    for client in clients:
        await client.close()


async def test_a_request_holds_what_was_asked_and_nothing_else(connect: Connect) -> None:
    handler, asked = replying(answer())
    client = await connect(handler)
    completion = await client.complete(HELLO)
    assert asked == [{"model": "tiny", "messages": HELLO, "temperature": 1.0, "max_tokens": 256}]
    assert completion.message == {"role": "assistant", "content": "Hi"}
    assert (completion.finish_reason, completion.logprobs) == ("stop", None)
    assert completion.usage == {"prompt_tokens": 3, "completion_tokens": 1}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_is_kept_and_not_sent_back(connect: Connect, field: str) -> None:
    handler, asked = replying(answer(**{field: "Hm."}))
    client = await connect(handler)
    message = (await client.complete(HELLO)).message
    assert message == {"role": "assistant", "content": "Hi", "reasoning_content": "Hm."}
    await client.complete([*HELLO, message])
    assert asked[1]["messages"] == [*HELLO, {"role": "assistant", "content": "Hi"}]


async def test_sampling_tools_and_further_fields_are_sent(connect: Connect) -> None:
    handler, asked = replying(answer())
    client = await connect(handler, logprobs=True, extra_body={"max_tokens": None, "max_completion_tokens": 9})
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=40, max_tokens=9, stop=("\n",), seed=7)
    await client.complete(HELLO, [tool], sampling)
    assert asked[0] == {
        "model": "tiny",
        "messages": HELLO,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "stop": ["\n"],
        "seed": 7,
        "tools": [tool],
        "logprobs": True,
        "max_completion_tokens": 9,
    }


async def test_tool_calls_and_logprobs_are_understood(connect: Connect) -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1'}},
        {"function": {"name": "g", "arguments": {"b": "é"}}},
        {"id": None, "function": {"name": "h", "arguments": None}},
    ]
    reply = answer(None, "tool_calls", tool_calls=calls)
    reply["choices"][0]["logprobs"] = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": 0}]}
    handler, _ = replying(reply)
    completion = await (await connect(handler)).complete(HELLO)
    assert completion.message == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1'}},
            {"id": "call_1", "type": "function", "function": {"name": "g", "arguments": '{"b": "é"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "h", "arguments": ""}},
        ],
    }
    assert (completion.finish_reason, completion.logprobs) == ("tool_calls", [-0.5, 0.0])


@pytest.mark.parametrize(
    ("reported", "understood"), [("length", "length"), ("stop", "stop"), ("eos", "stop"), ("max_tokens", "length")]
)
async def test_finish_reasons(connect: Connect, reported: str, understood: str) -> None:
    handler, _ = replying(answer("x", reported))
    assert (await (await connect(handler)).complete(HELLO)).finish_reason == understood


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503, 504])
async def test_what_passes_is_ridden_out(connect: Connect, code: int) -> None:
    handler, asked = replying(status(code, "busy"), status(code, "busy"), answer())
    assert (await (await connect(handler)).complete(HELLO)).message["content"] == "Hi"
    assert len(asked) == 3


async def test_a_storm_of_429_is_ridden_out_by_many_at_once(connect: Connect) -> None:
    seen: dict[str, int] = {}

    async def stormy(request: web.Request) -> web.StreamResponse:
        question = (await request.json())["messages"][0]["content"]
        seen[question] = seen.get(question, 0) + 1
        if seen[question] <= 3:
            return web.json_response({"error": "slow down"}, status=429, headers={"Retry-After": "0.01"})
        return web.json_response(answer(question))

    client = await connect(stormy)
    questions = [f"q{i}" for i in range(50)]
    completions = await asyncio.gather(*(client.complete([{"role": "user", "content": q}]) for q in questions))
    assert [completion.message["content"] for completion in completions] == questions
    assert set(seen.values()) == {4}


async def test_what_does_not_pass_is_told_with_the_url_and_the_answer(connect: Connect) -> None:
    handler, asked = replying(status(500, "CUDA out of memory"))
    client = await connect(handler, retries=2)
    with pytest.raises(InfrastructureError) as caught:
        await client.complete(HELLO)
    assert str(caught.value) == (
        f"{client.base_url}/chat/completions answered 500: 'CUDA out of memory' (tried 3 times)"
    )
    assert len(asked) == 3


async def test_retry_after_is_honoured(connect: Connect) -> None:
    handler, _ = replying(status(429, Retry_After="0.3"), answer())
    client = await connect(handler)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await client.complete(HELLO)
    assert loop.time() - started >= 0.3


async def test_nobody_waits_for_an_hour(connect: Connect) -> None:
    handler, _ = replying(status(429, "quota", Retry_After="3600"))
    client = await connect(handler)
    with pytest.raises(InfrastructureError, match=r"answered 429: 'quota' and asked to wait 3600 s \(tried once\)"):
        await client.complete(HELLO)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after(None) is None
    assert retry_after("") is None
    assert retry_after("2.5") == 2.5
    assert retry_after("-1") == 0.0
    assert retry_after("soon") is None
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60))
    assert 58 < (retry_after(in_a_minute) or 0) <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 -0000") == 0.0


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("<html>502 Bad Gateway</html>", "JSONDecodeError"),
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'choices'"),
        ('{"choices": []}', "IndexError"),
        ('{"choices": [{"message": null}]}', "AttributeError"),
        ('{"choices": [{"message": {"tool_calls": [{}]}}]}', "KeyError: 'function'"),
        ('{"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{}]}}]}', "KeyError: 'logprob'"),
    ],
)
async def test_garbage_is_infrastructure_and_shown(connect: Connect, body: str, error: str) -> None:
    handler, _ = replying(status(200, body))
    client = await connect(handler)
    with pytest.raises(InfrastructureError, match="answered something that is no chat completion") as caught:
        await client.complete(HELLO)
    assert f"({error}" in str(caught.value)
    assert str(caught.value).endswith(repr(body))


@pytest.mark.parametrize("reply", [answer("x", "abort"), answer(["parts"])])  # type: ignore[arg-type]
async def test_a_completion_the_server_gave_up_on_is_no_answer(connect: Connect, reply: dict[str, Any]) -> None:
    handler, _ = replying(reply)
    with pytest.raises(InfrastructureError, match="gave up on the completion"):
        await (await connect(handler)).complete(HELLO)


@pytest.mark.parametrize(
    ("code", "text", "message"),
    [
        (401, "bad key", r"refused the key \(401\): 'bad key'; set api_key or OPENAI_API_KEY"),
        (403, "no", r"refused the key \(403\)"),
        (404, "no model", r"knows no model 'tiny', or the path is wrong \(404\): 'no model'; base_url usually ends in"),
        (400, "top_k is no parameter", r"refused the request \(400\): 'top_k is no parameter'"),
        (422, "?", r"refused the request \(422\)"),
    ],
)
async def test_what_repeating_would_not_change_is_told_at_once(
    connect: Connect, code: int, text: str, message: str
) -> None:
    handler, asked = replying(status(code, text))
    with pytest.raises(ConfigError, match=message):
        await (await connect(handler)).complete(HELLO)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "text",
    [
        '{"error": {"code": "context_length_exceeded", "message": "…"}}',
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "Input length (5000 tokens) exceeds the maximum allowed length (4096 tokens)",
        "the request exceeds the available context size. try increasing the context size",
        "prompt is too long: 5000 tokens > 4096 maximum",
    ],
)
async def test_a_prompt_that_does_not_fit_is_told_apart(connect: Connect, text: str) -> None:
    handler, _ = replying(status(400, text))
    with pytest.raises(ContextLengthError, match="the prompt does not fit into the context of 'tiny'"):
        await (await connect(handler)).complete(HELLO)


async def test_a_server_that_hangs_is_given_up_on(connect: Connect) -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    client = await connect(hang, timeout=0.1)
    with pytest.raises(InfrastructureError, match=r"did not answer within 0\.1 s; is it overloaded"):
        await client.complete(HELLO)


async def test_a_connection_that_breaks_in_the_middle_is_made_again(connect: Connect) -> None:
    broken = 0

    async def fragile(request: web.Request) -> web.StreamResponse:
        nonlocal broken
        body = json.dumps(answer()).encode()
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        if broken < 2:
            broken += 1
            await response.write(body[:20])
            assert request.transport is not None
            request.transport.abort()
        else:
            await response.write(body)
        return response

    client = await connect(fragile)
    assert (await client.complete(HELLO)).message["content"] == "Hi"
    assert broken == 2

    broken = -9
    with pytest.raises(InfrastructureError, match=r"broke off \(.*connection.*\) \(tried 3 times\)"):
        await (await connect(fragile, retries=2)).complete(HELLO)


async def test_no_server_at_all_is_told_with_what_to_check() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = OpenAIClient(f"http://127.0.0.1:{port}/v1", "tiny", retries=1, backoff=0.001)
    for call in (client.complete(HELLO), client.check()):
        with pytest.raises(InfrastructureError) as caught:
            await call
        assert f"http://127.0.0.1:{port}/v1/" in str(caught.value)
        assert "cannot be reached" in str(caught.value)
        assert "is the server running, and base_url right? (tried 2 times)" in str(caught.value).replace(")?", "?")
    await client.close()


async def test_check_names_the_models(serve: Serve) -> None:
    async def models(request: web.Request) -> web.StreamResponse:
        assert (request.method, request.path) == ("GET", "/v1/models")
        assert request.headers["Authorization"] == "Bearer secret"
        return web.json_response({"data": [{"id": "tiny"}, {"id": "small"}]})

    client = OpenAIClient(await serve(models) + "/", "tiny", api_key="secret")
    assert await client.check() == ["tiny", "small"]
    assert "secret" not in repr(client)
    await client.close()


async def test_check_tells_what_is_no_such_api(connect: Connect) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>It works!</html>")

    with pytest.raises(ConfigError, match=r"/v1/models is not an OpenAI-compatible API: it answered '<html>It works!"):
        await (await connect(page)).check()


async def test_connections_are_kept_and_bounded(connect: Connect) -> None:
    ports, running, most = set(), 0, 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal running, most
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return web.json_response(answer())

    client = await connect(handler, max_connections=3)
    await asyncio.gather(*(client.complete(HELLO) for _ in range(12)))
    assert (len(ports), most) == (3, 3)


async def test_closing_twice_is_fine_and_the_client_opens_again(connect: Connect) -> None:
    handler, asked = replying(answer())
    client = await connect(handler)
    await client.close()
    await client.complete(HELLO)
    await client.close()
    await client.close()
    await client.complete(HELLO)
    assert len(asked) == 2


async def test_the_key_comes_from_the_environment(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.json_response(answer())

    url = await serve(handler)
    for key in ("from-the-environment", ""):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        client = OpenAIClient(url, "tiny")
        await client.complete(HELLO)
        await client.close()
    assert seen == ["Bearer from-the-environment", None]


def test_another_event_loop_is_refused_clearly() -> None:
    client = OpenAIClient("http://127.0.0.1:9/v1", "tiny", retries=0)

    async def use() -> None:
        with pytest.raises(InfrastructureError):
            await client.complete(HELLO)

    async def use_elsewhere() -> None:
        with pytest.raises(RuntimeError, match="has connections in another event loop"):
            await client.complete(HELLO)
        await client.close()

    asyncio.run(use())
    asyncio.run(use_elsewhere())


def test_a_url_without_a_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="base_url is 'localhost:30000'; expected something like http://"):
        OpenAIClient("localhost:30000", "tiny")
