"""Completions on their way through the engine: one by one, many at once, and as they grow."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from envs.errors import ContextLengthError
from envs.seeds import derive_seed
from rl.inference.engine import Engine, EngineBusyError, EngineError, Generation, TokenSampling
from rl.inference.label import Label
from rl.inference.server.sse import closing
from rl.inference.server.validation import Refused


@dataclass(frozen=True, slots=True)
class Job:
    """One completion to be sampled.

    Attributes:
        id: what the engine knows it by.
        request: the id of the request it belongs to.
    """

    id: str
    request: str
    prompt_ids: list[int]
    sampling: TokenSampling


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def jobs_of(rid: str, prompt_ids: list[int], sampling: TokenSampling, n: int) -> list[Job]:
    """`n` completions of a prompt. The first one draws with the given seed itself, the others with seeds made of it."""
    if n == 1:
        return [Job(rid, rid, prompt_ids, sampling)]
    seeds = [sampling.seed, *(derive_seed(sampling.seed, "n", i) for i in range(1, n))]
    return [Job(f"{rid}_{i}", rid, prompt_ids, replace(sampling, seed=seed)) for i, seed in enumerate(seeds)]


async def sample(engine: Engine, jobs: Sequence[Job]) -> list[Generation]:
    """All completions, in order. When one fails, or the caller is cancelled, none goes on."""
    tasks = [
        asyncio.create_task(engine.generate(job.prompt_ids, job.sampling, request_id=job.id), name=job.id)
        for job in jobs
    ]
    try:
        with refusals():
            return list(await asyncio.gather(*tasks))
    finally:
        await _end(tasks)


async def stream(engine: Engine, jobs: Sequence[Job]) -> AsyncIterator[tuple[int, Generation]]:
    """The pieces of all completions as they are drawn, with the number of the job each belongs to."""
    pieces: asyncio.Queue[tuple[int, Generation] | Exception] = asyncio.Queue()

    async def follow(number: int, job: Job) -> None:
        try:
            drawn = engine.stream(job.prompt_ids, job.sampling, request_id=job.id)
            async with closing(drawn):
                async for piece in drawn:
                    pieces.put_nowait((number, piece))
        except Exception as error:  # noqa: BLE001 - raised below, where somebody listens
            pieces.put_nowait(error)

    tasks = [asyncio.create_task(follow(i, job), name=job.id) for i, job in enumerate(jobs)]
    left = len(tasks)
    try:
        while left:
            piece = await pieces.get()
            if isinstance(piece, Exception):
                with refusals():
                    raise piece
            left -= piece[1].finish_reason is not None
            yield piece
    finally:
        await _end(tasks)


def joined(before: Generation | None, piece: Generation) -> Generation:
    """What has been drawn so far, of a stream."""
    if before is None:
        return piece
    return Generation(
        ids=before.ids + piece.ids,
        logprobs=before.logprobs + piece.logprobs,
        plain_logprobs=before.plain_logprobs + piece.plain_logprobs,
        versions=before.versions + piece.versions,
        finish_reason=piece.finish_reason,
        stopped_by=piece.stopped_by,
        cached_tokens=max(before.cached_tokens, piece.cached_tokens),
        routing=piece.routing,
    )


def reported_logprobs(generation: Generation, sampling: TokenSampling) -> list[float]:
    """The log-probabilities that answers carry: under the distribution sampled from.

    A greedy draw is certain, which tells nothing; like SGLang, greedy completions report the model's own distribution.
    """
    return generation.logprobs if sampling.temperature > 0 else generation.plain_logprobs


def version_spans(versions: Sequence[int], owner: str = "") -> list[dict[str, Any]]:
    """The policy version of every token: runs of equal ones, `end` being the first token after each.

    Args:
        versions: one per token.
        owner: whose they are, where that is to be told.
    """
    spans: list[dict[str, Any]] = []
    start = 0
    for version, run in groupby(versions):
        end = start + sum(1 for _ in run)
        spans.append({"version": str(Label(version, owner)), "start": start, "end": end})
        start = end
    return spans


@contextmanager
def refusals() -> Iterator[None]:
    """Says as a refusal what the engine says of a request that it cannot serve."""
    try:
        yield
    except ContextLengthError as error:
        raise Refused(f"context length: {error}", code="context_length_exceeded") from error
    except ValueError as error:
        raise Refused(str(error)) from error
    except EngineBusyError as error:
        raise Refused(str(error), status=503, retry_after=1) from error
    except EngineError as error:
        raise Refused(str(error), status=500) from error


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancels what is not done and waits until it has let go of its slots."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
