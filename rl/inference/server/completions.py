"""`/v1/completions`: continues texts or tokens."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from aiohttp import web

from rl.inference.engine import Generation
from rl.inference.server.jobs import Job, jobs_of, joined, reported_logprobs, sample, stream, version_spans
from rl.inference.server.openai import check_model, count, envelope, error_body, request_id, streaming, usage
from rl.inference.server.requests import read, reply
from rl.inference.server.sampling import openai_sampling
from rl.inference.server.service import SERVICE, Service
from rl.inference.server.sse import closing, send_events
from rl.inference.server.text import Unfolding, said_ids, without_stop
from rl.inference.server.validation import Fields, token_ids

DEFAULT_TOKENS = 16
"""OpenAI's own default of `max_tokens` on this route."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes:
        rid: its id.
        jobs: its completions by prompt.
        logprobs: whether the tokens' log-probabilities are wanted.
        ids: whether the exact tokens are.
        stream: whether the answer is a stream of events.
        usage: whether that ends with the tokens used.
    """

    rid: str
    jobs: dict[str, list[Job]]
    logprobs: bool
    ids: bool
    stream: bool
    usage: bool

    @property
    def flat(self) -> list[Job]:
        return [job for group in self.jobs.values() for job in group]


async def completions(request: web.Request) -> web.StreamResponse:
    """Continues a text or tokens, or several."""
    service = request.app[SERVICE]
    asked = _asked(service, Fields(await read(request)))
    with service.admitted(asked.rid, asked.jobs):
        if asked.stream:
            return await send_events(request, _chunks(service, asked), error_body)
        found = await sample(service.engine, asked.flat)
    count(service, asked.flat, found)
    choices = [
        _choice(service, asked, number, job, generation, _text(service, generation))
        for number, (job, generation) in enumerate(zip(asked.flat, found, strict=True))
    ]
    return reply(
        {**envelope(service, "text_completion", asked.rid), "choices": choices, "usage": usage(asked.flat, found)}
    )


def _asked(service: Service, fields: Fields) -> Asked:
    check_model(service, fields)
    prompts = _prompts(service, fields)
    rid = request_id(fields, "cmpl-")
    sampling, n = openai_sampling(fields, service.renderer.stop_ids, service.vocab_size, DEFAULT_TOKENS)
    streamed, with_usage = streaming(fields)
    ids, logprobs = fields.flag("return_token_ids"), fields.take("logprobs")
    if logprobs not in (None, False, True, 0, 1):
        raise fields.unfit("logprobs", logprobs, "0 or 1: only the log-probabilities of the sampled tokens are kept")
    fields.only("echo", (False,), "it is not supported")
    fields.only("suffix", (), "it is not supported")
    fields.done()
    rids = [rid] if len(prompts) == 1 else [f"{rid}_{i}" for i in range(len(prompts))]
    jobs = {own: jobs_of(own, prompt, sampling, n) for own, prompt in zip(rids, prompts, strict=True)}
    return Asked(rid, jobs, logprobs is not None and logprobs is not False, ids, streamed, with_usage)


def _prompts(service: Service, fields: Fields) -> list[list[int]]:
    """The prompts as tokens: `prompt` is a text, tokens, or a list of either."""
    prompt = fields.take("prompt")
    if isinstance(prompt, str) and prompt:
        return [service.encoded(prompt, "prompt")]
    if not isinstance(prompt, list) or not prompt:
        raise fields.unfit("prompt", prompt, "a text, a list of token ids, or a list of either; none of them empty")
    if not isinstance(prompt[0], str | list):
        return [token_ids(prompt, "prompt", service.vocab_size)]
    names = [f"prompt[{i}]" for i in range(len(prompt))]
    return [
        service.encoded(one, name) if isinstance(one, str) and one else token_ids(one, name, service.vocab_size)
        for one, name in zip(prompt, names, strict=True)
    ]


def _text(service: Service, generation: Generation) -> str:
    return without_stop(service.renderer.text(said_ids(generation)), generation.stopped_by)


def _choice(service: Service, asked: Asked, number: int, job: Job, generation: Generation, text: str) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": number,
        "text": text,
        "logprobs": _logprobs(service, job, generation) if asked.logprobs else None,
        "finish_reason": generation.finish_reason,
    }
    if asked.ids:
        choice["prompt_token_ids"], choice["token_ids"] = job.prompt_ids, generation.ids
        choice["weight_versions"] = version_spans(generation.versions)
    return choice


def _logprobs(service: Service, job: Job, generation: Generation) -> dict[str, Any]:
    tokens = [service.renderer.text([token]) for token in generation.ids]
    return {
        "tokens": tokens,
        "token_logprobs": reported_logprobs(generation, job.sampling),
        "top_logprobs": None,
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=0)) if tokens else [],
    }


async def _chunks(service: Service, asked: Asked) -> AsyncIterator[dict[str, Any]]:
    """A chunk with what is new per piece; the last one of a choice has the finish reason. Then the usage."""
    jobs = asked.flat
    head = envelope(service, "text_completion", asked.rid)
    so_far: list[Generation | None] = [None] * len(jobs)
    unfolding = [Unfolding(job.sampling.stop) for job in jobs]
    async with closing(pieces := stream(service.engine, jobs)):
        async for number, piece in pieces:
            whole = so_far[number] = joined(so_far[number], piece)
            text, over = _text(service, whole), whole.finish_reason is not None
            fresh = unfolding[number].finish(text) if over else unfolding[number].update(text)
            yield {**head, "choices": [_choice(service, asked, number, jobs[number], piece, fresh)]}
    found = [whole for whole in so_far if whole is not None]
    count(service, jobs, found)
    if asked.usage:
        yield {**head, "choices": [], "usage": usage(jobs, found)}
