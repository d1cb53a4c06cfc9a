"""A conversation with the real engine and a small model: piece by piece, and exact from turn to turn."""

from collections.abc import AsyncIterator

import pytest

from envs import ScriptedClient
from envs.render import ByteRenderer, TextStream
from envs.types import Sampling
from rl.inference.jax_engine import JaxEngine
from rl.models.base import Model, Params
from rl.rollout.conversation import ClientConversation, EngineConversation

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


async def test_a_client_answers_whole() -> None:
    client = ScriptedClient(lambda messages: f"{len(messages)} messages")
    talk = ClientConversation(client, Sampling(), system="Be")
    assert [piece async for piece in talk.say("Hi")] == ["2 messages"]
    assert [piece async for piece in talk.say("Hi")] == ["4 messages"]
    assert not talk.cut


def test_characters_are_told_when_they_are_whole() -> None:
    stream = TextStream(RENDERER)
    tokens = "aé🙂".encode()
    assert [stream.add([token]) for token in tokens] == ["a", "", "é", "", "", "", "🙂"]
    assert stream.add([0xC3]) == "" and stream.end() == "\ufffd"
