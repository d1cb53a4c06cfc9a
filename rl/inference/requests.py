"""One request on its way through the engine: what was asked, what has been drawn, how it ended. No jax here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from envs.types import Routing
from rl.data.routing import recorded
from rl.inference.engine import FinishReason, Generation, TokenSampling

TextOf = Callable[[Sequence[int]], str]
"""Tokens to text, for those who stop at texts."""


@dataclass(slots=True, eq=False)
class Request:
    """One `generate` or `stream` call.

    Attributes:
        id: what `abort` knows it by.
        prompt: its tokens.
        sampling: how to go on.
        limit: the most tokens to draw: `max_tokens`, or what the context leaves.
        on_news: called when tokens were added, or when it ended.
        cached_tokens: tokens of the prompt that lay in the cache already.
        unwanted: its caller is gone.
        experts: `[tokens, layers, k]`, one after the other: what its tokens went through, as it was when each was first
            read or drawn after, if that is recorded.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: TokenSampling
    limit: int
    on_news: Callable[[], None]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    plain_logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stopped_by: int | str | None = None
    cached_tokens: int = 0
    unwanted: bool = False
    experts: list[np.ndarray] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether nothing is to be drawn for it any more."""
        return self.unwanted or self.finish_reason is not None

    @property
    def tokens(self) -> tuple[int, ...]:
        """The prompt and what was drawn."""
        return (*self.prompt, *self.ids)

    def take(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float],
        plain_logprobs: Sequence[float],
        version: int,
        text_of: TextOf | None,
    ) -> None:
        """Adds tokens that were drawn with policy `version`, up to where it stops."""
        before = len(self.ids)
        self.ids += ids
        if self.sampling.stop and text_of is not None:
            self._stop_at_text(before, text_of)
        count = len(self.ids) - before
        self.logprobs += logprobs[:count]
        self.plain_logprobs += plain_logprobs[:count]
        self.versions += [version] * count
        if self.finish_reason is None:
            self._stop_at_id_or_limit()
        self.on_news()

    @property
    def routed(self) -> int:
        """Of how many tokens it is known which experts they went through."""
        return sum(map(len, self.experts))

    def end(self, reason: FinishReason) -> None:
        """Ends it with what it has."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self.on_news()

    def generation(self, start: int = 0) -> Generation:
        """What was drawn from token `start` on."""
        return Generation(
            self.ids[start:],
            self.logprobs[start:],
            self.plain_logprobs[start:],
            self.versions[start:],
            self.finish_reason,
            self.stopped_by,
            self.cached_tokens,
            self._routing(),
        )

    def _routing(self) -> Routing | None:
        if self.finish_reason is None or not self.experts:
            return None
        return recorded(np.concatenate(self.experts)[: len(self.prompt) + len(self.ids) - 1])

    def _stop_at_id_or_limit(self) -> None:
        if self.ids and self.ids[-1] in self.sampling.stop_ids and len(self.ids) > self.sampling.min_tokens:
            self.finish_reason, self.stopped_by = "stop", self.ids[-1]
        elif len(self.ids) >= self.limit:
            self.finish_reason = "length"

    def _stop_at_text(self, before: int, text_of: TextOf) -> None:
        found = first_stop(self.ids, max(before, self.sampling.min_tokens), self.sampling.stop, text_of)
        if found is not None:
            count, self.stopped_by = found
            del self.ids[count:]
            self.finish_reason = "stop"


def first_stop(ids: Sequence[int], start: int, stops: Sequence[str], text_of: TextOf) -> tuple[int, str] | None:
    """How many tokens it takes until the text contains one of `stops`, and which; None if it does not.

    Args:
        ids: tokens of a completion.
        start: that many of them are known not to end with a stop.
        stops: texts.
        text_of: tokens to text.
    """
    # A character takes four bytes at most, and a token writes one byte at least.
    far = max(start - 4 * max(map(len, stops)), 0)
    known = len(text_of(ids[far:start]).rstrip("\ufffd"))  # the last character may be unfinished

    def found(count: int) -> str | None:
        text = text_of(ids[far:count])
        return next((stop for stop in stops if text.find(stop, max(known - len(stop) + 1, 0)) >= 0), None)

    if found(len(ids)) is None:
        return None
    return next((count, stop) for count in range(start + 1, len(ids) + 1) if (stop := found(count)) is not None)


def check_sampling(
    sampling: TokenSampling, vocabulary: int, *, max_stop_ids: int, max_biases: int, text_of: TextOf | None
) -> None:
    """Refuses sampling that cannot be done.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """
    s = sampling
    ranges = (
        ("temperature", s.temperature, s.temperature >= 0, "0 or more"),
        ("top_p", s.top_p, 0 <= s.top_p <= 1, "0 … 1"),
        ("top_k", s.top_k, s.top_k >= 0, "0 or more"),
        ("min_p", s.min_p, 0 <= s.min_p <= 1, "0 … 1"),
        ("max_tokens", s.max_tokens, s.max_tokens >= 1, "1 or more"),
        ("min_tokens", s.min_tokens, 0 <= s.min_tokens <= s.max_tokens, f"0 … max_tokens ({s.max_tokens})"),
    )
    for name, value, fine, expected in ranges:
        if not fine:
            raise ValueError(f"{name} is {value}; expected {expected}")
    if len(s.stop_ids) > max_stop_ids:
        raise ValueError(f"{len(s.stop_ids)} stop ids; at most {max_stop_ids} fit")
    if len(s.logit_bias) > max_biases:
        raise ValueError(f"logit_bias has {len(s.logit_bias)} tokens; at most {max_biases} fit")
    strange = [i for i in (*s.logit_bias, *s.stop_ids) if not 0 <= i < vocabulary]
    if strange:
        raise ValueError(f"token {strange[0]} in stop_ids or logit_bias; the vocabulary has 0 … {vocabulary - 1}")
    if s.stop and text_of is None:
        raise ValueError(
            f"stop strings {list(s.stop)} were asked for, but this engine knows no text: give it text_of=, "
            "or use stop_ids"
        )
    if "" in s.stop:
        raise ValueError("a stop string is empty; it would stop everything")
