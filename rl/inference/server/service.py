"""What every route works with: the engine, the chat format, and what is under way."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import web

from envs.render import Renderer
from rl.inference.engine import Engine, PauseMode
from rl.inference.label import Label
from rl.inference.server.jobs import Job
from rl.inference.server.metrics import Counters
from rl.inference.server.validation import Refused

LoadWeights = Callable[[str], Awaitable[Any]]


class Score(Protocol):
    """Log-probabilities of given tokens; see `rl.inference.score.Scorer`."""

    async def __call__(self, ids: Sequence[int]) -> list[float]:
        """Of every token but the first, at temperature 1."""
        ...

    def load(self, params: Any) -> None:
        """Scores with other parameters from here on."""
        ...


@dataclass
class Service:
    """The state behind the routes.

    Attributes:
        engine: samples; belongs to whoever made it.
        renderer: the model's chat format.
        model: the name that requests call the model by.
        vocab_size: the model's; token ids are below it.
        encode: text to tokens, with nothing added; None where there is no tokenizer.
        load_weights: reads the weights in a folder as the engine's parameters; None where there is no such way.
        score: scores prompts; None where this server cannot.
        max_requests: completions under way at once, waiting ones included; more are refused with 503.
        counters: what `/metrics` tells.
        compiled: how many programs this process compiled.
        running: the ids of a request's completions, by its `rid`; one request per prompt.
        batches: the requests that came as one, by its `rid`.
        paused: how generation is paused, if it is.
        draining: the server is about to end, and takes nothing new.
        owner: the run whose weights these are; empty: none.
    """

    engine: Engine
    renderer: Renderer
    model: str
    vocab_size: int
    encode: Callable[[str], list[int]] | None = None
    load_weights: LoadWeights | None = None
    score: Score | None = None
    max_requests: int = 1024
    counters: Counters = field(default_factory=Counters)
    compiled: Callable[[], int] = lambda: 0
    running: dict[str, list[str]] = field(default_factory=dict)
    batches: dict[str, list[str]] = field(default_factory=dict)
    paused: PauseMode | None = None
    draining: bool = False
    owner: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    updating: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def label(self) -> Label:
        """What tokens are sampled with now."""
        return Label(self.engine.version, self.owner)

    @property
    def under_way(self) -> int:
        """Completions that are being sampled or wait for it."""
        return sum(map(len, self.running.values()))

    @contextmanager
    def admitted(self, rid: str, jobs: Mapping[str, Sequence[Job]]) -> Iterator[None]:
        """Counts completions as under way, and makes them known for `abort`.

        Args:
            rid: of all of them.
            jobs: by the id of their prompt's request.

        Raises:
            Refused: when too many are under way, or one with this id; when the server is about to end.
        """
        if self.draining:
            raise Refused("the server is shutting down", status=503, retry_after=1)
        if taken := [own for own in (rid, *jobs) if own in self.running or own in self.batches]:
            raise Refused(f"rid '{taken[0]}' is the id of a request under way; expected another one", field="rid")
        asked = sum(map(len, jobs.values()))
        if self.under_way + asked > self.max_requests:
            raise Refused(
                f"{self.under_way} completions are under way and {asked} more were asked for, but at most "
                f"{self.max_requests} are taken on; try again later",
                status=503,
                retry_after=1,
            )
        self.running |= {own: [job.id for job in group] for own, group in jobs.items()}
        if rid not in jobs:
            self.batches[rid] = list(jobs)
        try:
            yield
        finally:
            self.batches.pop(rid, None)
            for own in jobs:
                del self.running[own]

    def encoded(self, text: str, field: str) -> list[int]:
        """A text as tokens."""
        if self.encode is None:
            raise Refused(f"{field} is text, but this server has no tokenizer; expected token ids", field=field)
        return self.encode(text)

    async def abort(self, rid: str | None) -> None:
        """Ends the completions of a request with the tokens they have, or of all requests."""
        if rid is None:
            await self.engine.abort()
        for own in self.batches.get(rid or "", [rid or ""]):
            for completion in self.running.get(own, ()):
                await self.engine.abort(completion)


SERVICE = web.AppKey("service", Service)


async def scored(service: Service, ids: list[int], start: int) -> list[float | None]:
    """The log-probabilities of a prompt's tokens from `start` on, at temperature 1; the first of them has none."""
    if service.score is None:
        raise Refused(f"logprob_start_len is {start}, but this server cannot score prompts; expected -1")
    if len(ids) > service.engine.context:
        raise Refused(
            f"context length: the prompt has {len(ids)} tokens; at most {service.engine.context} can be scored",
            code="context_length_exceeded",
        )
    found = await service.score(ids)
    return [None, *found[start:]][: max(len(ids) - start, 0)]
