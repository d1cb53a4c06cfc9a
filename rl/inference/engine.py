"""Token in, token out: what the trainer samples from."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from envs.errors import InfrastructureError
from envs.types import Routing


class EngineError(InfrastructureError):
    """The engine itself failed. Waiting requests all end with it."""


class EngineBusyError(InfrastructureError):
    """The queue is full; try again later."""


PauseMode = Literal["abort", "retract", "in_place"]
"""What happens to requests under way: they end with what they have, go back to the queue (their cache is forgotten, and
read again with the weights there are then), or wait where they are with their cache as it is."""

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class TokenSampling:
    """How tokens are drawn, in tokens.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_p: keep the smallest set of tokens with at least this probability; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        min_p: keep tokens at least this share as probable as the likeliest; 0 keeps all.
        max_tokens: the most tokens to draw.
        min_tokens: before so many tokens, none of `stop_ids` is drawn and no `stop` looked for.
        stop_ids: tokens that end the completion (and are part of it).
        stop: texts that end the completion (the tokens that wrote them are part of it).
        logit_bias: added to the logit of a token, before temperature.
        seed: decides the draw together with the position, whatever else is in flight.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 256
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """Sampled tokens, or the next few of them where they are streamed. Lists have one entry per token.

    Attributes:
        ids: the tokens.
        logprobs: under exactly the distribution sampled from: temperature, truncation and all. NaN where the engine
            cannot tell: SGLang leaves truncation out.
        plain_logprobs: under the model's own distribution: temperature 1, nothing truncated. NaN where the engine
            cannot tell: SGLang knows one temperature per request.
        versions: the policy version each was sampled with.
        finish_reason: None while more is to come.
        stopped_by: the stop id or stop text that ended it.
        cached_tokens: tokens of the prompt that did not have to be read; no part of what was said, so not compared.
        routing: experts that the prompt and all drawn tokens but the last went through, told with the finish reason (of
            a stream: for all of it), where the engine records them.
    """

    ids: list[int]
    logprobs: list[float]
    plain_logprobs: list[float]
    versions: list[int]
    finish_reason: FinishReason | None
    stopped_by: int | str | None = None
    cached_tokens: int = field(default=0, compare=False)
    routing: Routing | None = None


class Engine(Protocol):
    """Samples from the policy. One engine serves any number of concurrent calls."""

    @property
    def context(self) -> int:
        """The most tokens a prompt and its completion may have together."""
        ...

    @property
    def version(self) -> int:
        """The policy version that tokens are sampled with now."""
        ...

    async def generate(
        self, prompt_ids: Sequence[int], sampling: TokenSampling, *, request_id: str | None = None
    ) -> Generation:
        """Samples a continuation. Requests with equal prompts that wait together share one prefill.

        Cancelling the call frees its slot.

        Raises:
            ContextLengthError: when the prompt leaves no room for a token.
            EngineBusyError: when too many requests wait.
            EngineError: when the engine failed.
            ValueError: for sampling that cannot be done.
        """
        ...

    def stream(
        self, prompt_ids: Sequence[int], sampling: TokenSampling, *, request_id: str | None = None
    ) -> AsyncIterator[Generation]:
        """As `generate`, in pieces as they are drawn; the last one has a finish reason."""
        ...

    async def abort(self, request_id: str | None = None) -> None:
        """Ends a request with the tokens it has (finish reason "abort"), or all of them. Unknown ones are no error."""
        ...

    async def load_weights(self, params: Any, version: int) -> None:
        """Samples with `params`, adapters among them, from here on; tokens drawn from now on carry `version`.

        Requests under way go on, with their cache as it is; `pause("retract")` before makes them read it anew.
        """
        ...

    async def relabel(self, version: int) -> None:
        """Tokens drawn from now on carry `version`; the weights stay as they are."""
        ...

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """Returns once nothing is being sampled; new requests wait."""
        ...

    async def resume(self) -> None: ...

    async def flush_cache(self) -> None:
        """Forgets what finished requests left in the cache for those that share their beginning."""
        ...

    async def health(self) -> None:
        """Raises `EngineError` when the engine cannot serve."""
        ...

    async def close(self) -> None: ...
