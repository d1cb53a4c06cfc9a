"""Counters of a server, in Prometheus' text format."""

import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Counters:
    """What happened since the server began.

    Attributes:
        requests: answers by (route, status).
        seconds: time from request to whole answer, summed by route.
        prompt_tokens: of answered completions, also those found in the cache.
        cached_tokens: tokens of prompts that did not have to be read.
        completion_tokens: sampled.
        disconnects: clients that left before their answer was whole.
        weight_updates: times that weights were replaced.
        started: when the server began, on the monotonic clock.
    """

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    disconnects: int = 0
    weight_updates: int = 0
    started: float = field(default_factory=time.monotonic)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self.requests[route, status] += 1
        self.seconds[route] += seconds  # type: ignore[assignment]

    def sampled(self, prompt: int, cached: int, completion: int) -> None:
        """Adds the tokens of one completion."""
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.completion_tokens += completion

    def exposition(self, gauges: dict[str, tuple[str, float]]) -> str:
        """The text that Prometheus scrapes.

        Args:
            gauges: name -> (what it is, value) of what only the server itself knows.
        """
        lines: list[str] = []

        def head(name: str, kind: str, does: str) -> None:
            lines.extend((f"# HELP upswing_{name} {does}", f"# TYPE upswing_{name} {kind}"))

        head("requests_total", "counter", "Answers by route and status.")
        for (route, status), count in sorted(self.requests.items()):
            lines.append(f'upswing_requests_total{{route="{route}",status="{status}"}} {count}')
        head("request_seconds_total", "counter", "Time from request to whole answer, summed.")
        for route, seconds in sorted(self.seconds.items()):
            lines.append(f'upswing_request_seconds_total{{route="{route}"}} {seconds:.6f}')
        for name, does in (
            ("prompt_tokens", "Tokens of prompts, cached ones included."),
            ("cached_tokens", "Tokens of prompts that did not have to be read."),
            ("completion_tokens", "Tokens sampled."),
            ("disconnects", "Clients that left before their answer was whole."),
            ("weight_updates", "Times that weights were replaced."),
        ):
            head(f"{name}_total", "counter", does)
            lines.append(f"upswing_{name}_total {getattr(self, name)}")
        for name, (does, value) in gauges.items():
            head(name, "gauge", does)
            lines.append(f"upswing_{name} {value:g}")
        return "\n".join(lines) + "\n"
