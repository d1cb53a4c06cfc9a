"""What tokens cost."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Price:
    """What a server asks for, in US dollars per million tokens."""

    prompt: float
    completion: float

    def of(self, usage: Mapping[str, int]) -> float:
        """Dollars for the tokens that a server counted."""
        tokens = usage.get("prompt_tokens", 0) * self.prompt + usage.get("completion_tokens", 0) * self.completion
        return tokens / 1e6
