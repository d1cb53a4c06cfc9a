"""Token in, token out: what the trainer samples from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from envs.errors import InfrastructureError


class EngineError(InfrastructureError):
    """The engine itself failed. Waiting requests all end with it."""


@dataclass(frozen=True, slots=True)
class TokenSampling:
    """How tokens are drawn, in tokens.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_p: keep the smallest set of tokens with at least this probability; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        max_tokens: the most tokens to draw.
        stop_ids: tokens that end the completion (and are part of it).
        seed: decides the draw together with the position, whatever else is in flight.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop_ids: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """Sampled tokens; `logprobs` are under exactly the distribution sampled from: temperature, truncation and all."""

    ids: list[int]
    logprobs: list[float]
    versions: list[int]
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """Samples from the policy. One engine serves any number of concurrent `generate` calls."""

    @property
    def context(self) -> int:
        """The most tokens a prompt and its completion may have together."""
        ...

    async def generate(self, prompt_ids: Sequence[int], sampling: TokenSampling) -> Generation:
        """Samples a continuation. Requests with equal prompts that wait together share one prefill.

        Raises:
            ContextLengthError: when the prompt leaves no room for a token.
            EngineError: when the engine failed.
        """
        ...

    async def load_weights(self, params: Any, version: int) -> None:
        """Samples with `params` from here on; tokens drawn from now on carry `version`."""
        ...

    async def pause(self) -> None:
        """Returns once nothing is being sampled; requests wait."""
        ...

    async def resume(self) -> None: ...

    async def health(self) -> None:
        """Raises `EngineError` when the engine cannot serve."""
        ...

    async def close(self) -> None: ...
