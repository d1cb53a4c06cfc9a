"""One completion on its way through servers: what was drawn so far, and which request draws the rest."""

import asyncio
from dataclasses import dataclass, field

from rl.inference.engine import EngineError
from rl.inference.requests import Request, TextOf, first_stop
from rl.inference.sglang.answer import Answer
from rl.inference.sglang.publish.adapters import Adapter
from rl.inference.sglang.sampling import logprobs


@dataclass(slots=True, eq=False)
class Drawing:
    """A completion. It may take several requests: another one begins where the one before was interrupted.

    Attributes:
        request: what was asked, and what has been drawn.
        key: requests of one key go to one server.
        task: works on it.
        aborted: its caller wants no more.
        made: requests that were made for it.
        rid: the server's name for the request under way; None between two.
        url: where that is.
        base: tokens there were when it was made.
        settled: the version of all it draws, until something is published; None when that is just happening.
        adapter: what the request is drawn with, where servers have adapters.
        fixed: the version of all that is drawn with it, whatever is published meanwhile.
        found: how many tokens it takes to the first text to stop at, and which.
    """

    request: Request
    key: str
    task: "asyncio.Task[None] | None" = None
    aborted: bool = False
    made: int = 0
    rid: str | None = None
    url: str = ""
    base: int = 0
    settled: int | None = None
    adapter: Adapter | None = None
    fixed: int | None = None
    found: tuple[int, str] | None = field(default=None)

    @property
    def left(self) -> int:
        """Tokens to draw at most."""
        return self.request.limit - len(self.request.ids)

    def cancel(self) -> None:
        """Nobody works on it any more."""
        if self.task is not None:
            self.task.cancel()

    def begin(self, url: str, settled: int | None, adapter: Adapter | None = None) -> None:
        """A request is made, under a name of its own: the one before may still be known to the server."""
        self.rid = f"{self.request.id}~{self.made}" if self.made else self.request.id
        self.made += 1
        self.url, self.settled, self.adapter = url, settled, adapter
        self.fixed = None if adapter is None else adapter.version
        self.base = len(self.request.ids)

    def take(self, answer: Answer, text_of: TextOf | None) -> None:
        """Adds what an answer, or an event of a stream, brings. Tokens whose version is not sure yet are left for an
        event that tells it: the last one does.

        Args:
            answer: everything since the request was made.
            text_of: for texts to stop at.

        Raises:
            EngineError: when the server gave up, or forgot tokens.
        """
        request, before = self.request, len(self.request.ids)
        start = before - self.base
        if len(answer.ids) < start or answer.ids[:start] != request.ids[self.base :]:
            raise EngineError(
                f"the server at {self.url} takes back tokens it has drawn; expected more and more of them"
            )
        if self.found is None:
            self.found = self._stop_in([*request.ids, *answer.ids[start:]], before, text_of)
        versions = answer.versions
        if versions is None:
            if self.settled is None:
                return
            versions = [self.settled] * len(answer.ids)
        drawn, plain = logprobs(answer.logprobs, answer.plain, request.sampling)
        request.ids += answer.ids[start:]
        request.logprobs += drawn[start:]
        request.plain_logprobs += plain[start:]
        request.versions += versions[start:]
        request.cached_tokens = max(request.cached_tokens, answer.cached if self.base == 0 else 0)
        self._finish(answer)
        request.on_news()

    def _finish(self, answer: Answer) -> None:
        """Ends the completion, unless the request ended for a reason that is none to the caller: then it goes on."""
        request = self.request
        if self.found is not None:
            count, text = self.found
            for each in (request.ids, request.logprobs, request.plain_logprobs, request.versions):
                del each[count:]
            request.finish_reason, request.stopped_by = "stop", text
        elif answer.finish == "stop" and isinstance(answer.matched, str):
            raise EngineError(f"the server at {self.url} gave up drawing: {answer.matched}")
        elif answer.finish == "stop" and answer.matched in request.sampling.stop_ids:
            request.finish_reason, request.stopped_by = "stop", answer.matched
        elif len(request.ids) >= request.limit:
            request.finish_reason = "length"
        elif answer.finish == "length":
            raise EngineError(
                f"the server at {self.url} ended after {len(answer.ids)} tokens, where {request.limit - self.base} "
                "were asked for: its context is smaller than it says"
            )
        elif answer.finish == "abort" and self.aborted:
            request.finish_reason = "abort"

    def _stop_in(self, ids: list[int], before: int, text_of: TextOf | None) -> tuple[int, str] | None:
        sampling = self.request.sampling
        if not sampling.stop or text_of is None:
            return None
        return first_stop(ids, max(before, sampling.min_tokens), sampling.stop, text_of)
