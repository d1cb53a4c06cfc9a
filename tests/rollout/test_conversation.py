"""A conversation with the real engine and a small model: piece by piece, and exact from turn to turn."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from envs import ConfigError, InfrastructureError, OpenAIClient
from envs.render import ByteRenderer, TextStream
from envs.types import Sampling
from rl.inference.jax_engine import JaxEngine
from rl.models.base import Model, Params
from rl.rollout.conversation import EngineConversation, ServerConversation

RENDERER = ByteRenderer()
END = 256


@pytest.fixture
async def engine(model: Model, params: Params) -> AsyncIterator[JaxEngine]:
    engine = JaxEngine(model, params, slots=1, tokens_per_dispatch=2, text_of=RENDERER.text)
    yield engine
    await engine.close()


async def test_pieces_are_the_answer_and_the_next_prompt_starts_with_it(engine: JaxEngine) -> None:
    talk = EngineConversation(engine, RENDERER, Sampling(max_tokens=5, seed=3), system="Be")
    first = [piece async for piece in talk.say("Hi")]
    prompt, said = talk.prompt_ids, talk.completion_ids
    assert prompt == [257, *b"Be", END, 258, *b"Hi", END, 259]
    assert (len(said), talk.tokens, talk.cut) == (5, 5, said[-1] != END)
    assert "".join(first) == talk.messages[-1]["content"]
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant"]
    [_ async for _ in talk.say("Go on")]
    closed = [] if said[-1] == END else [END]
    assert talk.prompt_ids == [*prompt, *said, *closed, 258, *b"Go on", END, 259]
    again = EngineConversation(engine, RENDERER, Sampling(max_tokens=5, seed=3), system="Be")
    assert [piece async for piece in again.say("Hi")] == first


async def test_an_answer_that_is_stopped_stays_as_far_as_it_came(engine: JaxEngine) -> None:
    talk = EngineConversation(engine, RENDERER, Sampling(max_tokens=30, seed=3))
    pieces = talk.say("Hi")
    await anext(pieces)
    await pieces.aclose()  # type: ignore[attr-defined]
    said = talk.completion_ids
    assert 1 <= len(said) < 30 and len(talk.messages) == 2
    [_ async for _ in talk.say("?")]
    assert talk.prompt_ids[: len(said) + 5] == [258, *b"Hi", END, 259, *said]


def event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


@pytest.fixture
async def server() -> AsyncIterator[tuple[OpenAIClient, list[dict[str, Any]], list[web.Response | list[bytes]]]]:
    """A local server that streams what it is given, what it was asked, and what it will answer next."""
    asked: list[dict[str, Any]] = []
    answers: list[web.Response | list[bytes]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        said = answers[len(asked) - 1]
        if isinstance(said, web.Response):
            return said
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in said:
            await response.write(part)
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = OpenAIClient(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "tiny", api_key="")
    yield client, asked, answers
    await client.close()
    await runner.cleanup()


async def test_a_server_answers_piece_by_piece(server: Any) -> None:
    client, asked, answers = server
    usage = b'data: {"choices": [], "usage": {}}\n\n'
    first = b"".join([event("Yo"), event("é", "length"), usage, b"data: [DONE]\n\n"])
    answers += [[b": hello\n\n", first[:20], first[20:]], [event("Bye", "stop")]]
    talk = ServerConversation(client, Sampling(seed=1), system="Be")
    assert [piece async for piece in talk.say("Hi")] == ["Yo", "é", ""]
    assert talk.cut
    assert (talk.messages[-1], talk.tokens) == ({"role": "assistant", "content": "Yoé"}, 3)
    assert [piece async for piece in talk.say("So?")] == ["Bye"]
    assert not talk.cut
    assert [message["content"] for message in asked[1]["messages"]] == ["Be", "Hi", "Yoé", "So?"]
    assert asked[0]["stream"] is True and asked[0]["seed"] != asked[1]["seed"]


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (web.Response(status=503, text="busy"), InfrastructureError, "answered 503"),
        (web.Response(status=401, text="who"), ConfigError, "refused the key"),
        ([b"data: {}\n\n"], InfrastructureError, "streamed something that is no chat completion"),
        ([event("", "abort")], InfrastructureError, "gave up on the completion"),
    ],
)
async def test_a_server_that_fails_says_how(server: Any, answer: Any, error: type[Exception], says: str) -> None:
    client, _, answers = server
    answers.append(answer)
    talk = ServerConversation(client, Sampling())
    with pytest.raises(error, match=says):
        [_ async for _ in talk.say("Hi")]
    assert talk.messages == []


def test_characters_are_told_when_they_are_whole() -> None:
    stream = TextStream(RENDERER)
    tokens = "aé🙂".encode()
    assert [stream.add([token]) for token in tokens] == ["a", "", "é", "", "", "", "🙂"]
    assert stream.add([0xC3]) == "" and stream.end() == "\ufffd"
