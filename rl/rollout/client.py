"""A message-level client over a token-level engine: what a harness talks to while the policy is trained."""

import math
import secrets
from collections.abc import Sequence
from typing import Protocol

from envs.render import Renderer
from envs.types import Completion, FinishReason, Message, Routing, Sampling, ToolSchema, Turn
from rl.inference.engine import EngineError, Generation, TokenSampling


class Generator(Protocol):
    """What the client needs of an `Engine`."""

    async def generate(
        self, prompt_ids: Sequence[int], sampling: TokenSampling, *, request_id: str | None = None
    ) -> Generation: ...


class EngineClient:
    """Renders messages to tokens, samples from `engine`, and keeps the exact tokens from turn to turn."""

    def __init__(self, engine: Generator, renderer: Renderer) -> None:
        self._engine = engine
        self._renderer = renderer

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
        sampling: Sampling = Sampling(),
        *,
        previous: Turn | None = None,
    ) -> Completion:
        prompt_ids, continues = self._prompt(messages, tools, previous)
        generation = await self._engine.generate(prompt_ids, token_sampling(sampling, self._renderer.stop_ids))
        message = self._message(generation, prompt_ids, tools)
        return Completion(
            message=message,
            finish_reason=finish_reason(generation, message),
            prompt_ids=prompt_ids,
            completion_ids=generation.ids,
            logprobs=None if any(map(math.isnan, generation.logprobs)) else generation.logprobs,
            versions=generation.versions,
            usage={"prompt_tokens": len(prompt_ids), "completion_tokens": len(generation.ids)},
            routing=_new(generation.routing, previous.completion if previous is not None and continues else None),
        )

    async def close(self) -> None:
        """The engine belongs to whoever made it; there is nothing else to let go."""

    def _prompt(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], previous: Turn | None
    ) -> tuple[list[int], bool]:
        """The prompt, and whether it begins with all tokens of the turn before."""
        if previous is None:
            return self._renderer.prompt(messages, tools), False
        before = previous.completion
        assert before.prompt_ids is not None and before.completion_ids is not None  # it was this client's own turn
        # A model may say the same thing twice, and a harness may say it for the model: what led to it tells them apart.
        led = len(previous.messages)
        answered = max(
            i
            for i, message in enumerate(messages)
            if message == before.message and tuple(messages[i - led : i]) == previous.messages
        )
        extended = self._renderer.extend(before.prompt_ids, before.completion_ids, messages[answered + 1 :], tools)
        # Where the chat format hides what was sampled (old reasoning), the model is shown what the format shows.
        return (self._renderer.prompt(messages, tools), False) if extended is None else (extended, True)

    def _message(self, generation: Generation, prompt_ids: Sequence[int], tools: Sequence[ToolSchema]) -> Message:
        message = self._renderer.parse(generation.ids, prompt_ids=prompt_ids, tools=tools)
        return without_stop(message, generation.stopped_by) if isinstance(generation.stopped_by, str) else message


def _new(routing: Routing | None, before: Completion | None) -> Routing | None:
    """What the turn before does not say already: all but its last token went through experts then."""
    if routing is None or before is None or before.routing is None:
        return routing
    return routing.since(before.routing.first + before.routing.shape[0])


def token_sampling(sampling: Sampling, stop_ids: tuple[int, ...]) -> TokenSampling:
    """The same in tokens; without a seed, another one every time."""
    return TokenSampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        stop_ids=stop_ids,
        stop=sampling.stop,
        seed=secrets.randbits(31) if sampling.seed is None else sampling.seed,
    )


def without_stop(message: Message, stop: str) -> Message:
    """The message up to the text that ended it, which its tokens spell too."""
    content = message["content"]
    if content is not None and stop in content:
        return {**message, "content": content.partition(stop)[0]}
    if stop in message.get("reasoning_content", ""):
        return {**message, "reasoning_content": message["reasoning_content"].partition(stop)[0]}
    return message


def finish_reason(generation: Generation, message: Message) -> FinishReason:
    """Why a completion ended, in the words of messages.

    Raises:
        EngineError: when the engine was told to let go of it: half an answer is no answer.
    """
    if generation.finish_reason is None or generation.finish_reason == "abort":
        raise EngineError(f"a completion was aborted after {len(generation.ids)} tokens")
    return "tool_calls" if message.get("tool_calls") else generation.finish_reason
