"""A conversation with a model, for a person: it answers piece by piece, and keeps what was said token by token."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol
from uuid import uuid4

from envs.clients.openai import OpenAIClient
from envs.render import Renderer, TextStream
from envs.seeds import derive_seed
from envs.types import Message, Sampling
from rl.inference.engine import Engine
from rl.rollout.client import token_sampling


class Conversation(Protocol):
    """What `rl chat` talks to.

    Attributes:
        messages: all that was said.
        cut: the last answer ran out of tokens.
        tokens: how many the last answer had (from a server: in how many pieces it came).
    """

    messages: list[Message]
    cut: bool
    tokens: int

    def say(self, text: str) -> AsyncIterator[str]:
        """Says `text` to the model and gives its answer piece by piece; whoever stops listening stops the answer.

        Raises:
            ContextLengthError: when the conversation has become too long; `text` is not part of it then.
        """
        ...


class EngineConversation:
    """With our own engine. The next prompt starts with exactly the tokens of this one and of the answer, cut or not.

    Args:
        engine: the model.
        renderer: its chat format.
        sampling: how tokens are drawn; every answer derives its own seed.
        system: what the conversation begins with.
    """

    def __init__(self, engine: Engine, renderer: Renderer, sampling: Sampling, system: str | None = None) -> None:
        self._engine, self._renderer, self._sampling = engine, renderer, sampling
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.cut, self.tokens = False, 0
        self.prompt_ids: list[int] = []
        self.completion_ids: list[int] = []

    async def say(self, text: str) -> AsyncIterator[str]:
        asked: Message = {"role": "user", "content": text}
        prompt = self._renderer.extend(self.prompt_ids, self.completion_ids, [asked]) if self.prompt_ids else None
        prompt = self._renderer.prompt([*self.messages, asked]) if prompt is None else prompt
        sampling = replace(self._sampling, seed=_seed_of_turn(self._sampling, self.messages))
        stream = TextStream(self._renderer)
        ids: list[int] = []
        request = uuid4().hex
        drawn = self._engine.stream(prompt, token_sampling(sampling, self._renderer.stop_ids), request_id=request)
        try:
            async for piece in drawn:
                ids += piece.ids
                ended = piece.finish_reason == "stop" and piece.ids[-1:] == [piece.stopped_by]
                self.cut = piece.finish_reason == "length"
                yield stream.add(piece.ids[:-1] if ended else piece.ids)
            yield stream.end()
        finally:
            await self._engine.abort(request)
            self.tokens = len(ids)
            if ids:
                self.prompt_ids, self.completion_ids = prompt, ids
                self.messages += [asked, self._renderer.parse(ids, prompt_ids=prompt)]


class ServerConversation:
    """With a server, which is told the whole conversation every time.

    Args:
        client: the server.
        sampling: how tokens are drawn; every answer derives its own seed.
        system: what the conversation begins with.
    """

    def __init__(self, client: OpenAIClient, sampling: Sampling, system: str | None = None) -> None:
        self._client, self._sampling = client, sampling
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.cut, self.tokens = False, 0

    async def say(self, text: str) -> AsyncIterator[str]:
        asked: Message = {"role": "user", "content": text}
        sampling = replace(self._sampling, seed=_seed_of_turn(self._sampling, self.messages))
        said: list[str] = []
        self.cut = False
        try:
            async with aclosing(self._client.stream([*self.messages, asked], sampling)) as pieces:
                async for piece, ends in pieces:
                    said.append(piece)
                    self.cut = self.cut if ends is None else ends == "length"
                    yield piece
        finally:
            self.tokens = len(said)
            if said:
                self.messages += [asked, {"role": "assistant", "content": "".join(said)}]


def _seed_of_turn(sampling: Sampling, messages: list[Message]) -> int | None:
    return None if sampling.seed is None else derive_seed(sampling.seed, "chat", len(messages))
