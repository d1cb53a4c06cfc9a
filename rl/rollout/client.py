"""A message-level client over a token-level engine: what a harness talks to while the policy is trained."""

import secrets
from collections.abc import Sequence

from envs.errors import ConfigError
from envs.render import Renderer
from envs.types import Completion, Message, Sampling, ToolSchema, Turn
from rl.inference.engine import Engine, TokenSampling


class EngineClient:
    """Renders messages to tokens, samples from `engine`, and keeps the exact tokens from turn to turn."""

    def __init__(self, engine: Engine, renderer: Renderer) -> None:
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
        prompt_ids = self._prompt(messages, tools, previous)
        generation = await self._engine.generate(prompt_ids, self._token_sampling(sampling))
        message = self._renderer.parse(generation.ids)
        return Completion(
            message=message,
            finish_reason="tool_calls" if message.get("tool_calls") else generation.finish_reason,
            prompt_ids=prompt_ids,
            completion_ids=generation.ids,
            logprobs=generation.logprobs,
            versions=generation.versions,
            usage={"prompt_tokens": len(prompt_ids), "completion_tokens": len(generation.ids)},
        )

    async def close(self) -> None:
        """The engine belongs to whoever made it; there is nothing else to let go."""

    def _prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema], previous: Turn | None) -> list[int]:
        if previous is None:
            return self._renderer.prompt(messages, tools)
        before = previous.completion
        assert before.prompt_ids is not None and before.completion_ids is not None  # it was this client's own turn
        # A model may say the same thing twice, and a harness may say it for the model: what led to it tells them apart.
        led = len(previous.messages)
        answered = max(
            i
            for i, message in enumerate(messages)
            if message == before.message and tuple(messages[i - led : i]) == previous.messages
        )
        return self._renderer.extend([*before.prompt_ids, *before.completion_ids], messages[answered + 1 :])

    def _token_sampling(self, sampling: Sampling) -> TokenSampling:
        if sampling.stop:
            raise ConfigError(
                f"stop strings {list(sampling.stop)} were asked for, but the in-process engine stops at the model's "
                "end token only; leave them out, or cut the text in the environment"
            )
        return TokenSampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            stop_ids=self._renderer.stop_ids,
            seed=secrets.randbits(31) if sampling.seed is None else sampling.seed,
        )
