"""`/generate`, with SGLang's fields and answers."""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from rl.inference.engine import Generation, TokenSampling
from rl.inference.server.jobs import Job, jobs_of, joined, new_id, reported_logprobs, sample, stream, version_spans
from rl.inference.server.requests import read, reply
from rl.inference.server.sampling import native_sampling
from rl.inference.server.service import SERVICE, Service, scored
from rl.inference.server.sse import closing, send_events
from rl.inference.server.text import said_ids, without_stop
from rl.inference.server.validation import Fields, Refused, token_ids

UNSUPPORTED = (
    *("input_embeds", "image_data", "audio_data", "video_data", "token_ids_logprob", "lora_path", "session_params"),
    *("custom_logit_processor", "return_hidden_states", "return_routed_experts"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes:
        rid: its id.
        jobs: the completions by the id of their prompt's own request.
        many: whether the answer is a list.
        logprobs: whether log-probabilities are wanted.
        scored_from: the first prompt token whose log-probability is wanted too; -1 for none.
        texts: whether log-probabilities carry their token's text.
        stream: whether the answer is a stream of events.
        begun: when it came, on the monotonic clock.
    """

    rid: str
    jobs: dict[str, list[Job]]
    many: bool
    logprobs: bool
    scored_from: int
    texts: bool
    stream: bool
    begun: float

    @property
    def flat(self) -> list[Job]:
        return [job for group in self.jobs.values() for job in group]


async def generate(request: web.Request) -> web.StreamResponse:
    """Samples continuations of tokens or texts, one or many."""
    service = request.app[SERVICE]
    asked = _asked(service, Fields(await read(request)))
    with service.admitted(asked.rid, asked.jobs):
        scores = await _scores(service, asked)
        if asked.stream:
            return await send_events(request, _events(service, asked, scores), error_body)
        found = await _sampled(service, asked)
        answers = [
            _answer(service, asked, job, generation, scores) for job, generation in zip(asked.flat, found, strict=True)
        ]
    for job, generation in zip(asked.flat, found, strict=True):
        service.counters.sampled(len(job.prompt_ids), generation.cached_tokens, len(generation.ids))
    return reply(answers if asked.many else answers[0])


def error_body(refused: Refused) -> dict[str, Any]:
    """How SGLang's native routes say what is wrong."""
    return {"error": {"message": str(refused), "field": refused.field, "code": refused.status}}


def _asked(service: Service, fields: Fields) -> Asked:
    begun = time.monotonic()
    prompts, batch = _prompts(service, fields)
    whole, rids = _rids(fields, len(prompts) if batch else None)
    sampling = _samplings(service, fields, len(prompts) if batch else None)
    logprobs = fields.flag("return_logprob")
    scored_from: int = fields.integer("logprob_start_len", -1, low=-1)
    texts, streamed = fields.flag("return_text_in_logprobs"), fields.flag("stream")
    fields.only("top_logprobs_num", (0,), "only the log-probabilities of the sampled tokens are kept")
    for name in UNSUPPORTED:
        fields.only(name, (False,), "it is not supported")
    fields.ignore("log_metrics", "priority", "extra_key", "modalities", "bootstrap_room")
    fields.done()
    jobs = {
        rid: jobs_of(rid, prompt, drawn, n) for rid, prompt, (drawn, n) in zip(rids, prompts, sampling, strict=True)
    }
    many = batch or any(len(group) > 1 for group in jobs.values())
    return Asked(whole, jobs, many, logprobs, scored_from if logprobs else -1, texts, streamed, begun)


def _prompts(service: Service, fields: Fields) -> tuple[list[list[int]], bool]:
    """The prompts as tokens, and whether they came as a list of prompts."""
    ids, text = fields.take("input_ids"), fields.take("text")
    if (ids is None) == (text is None):
        raise Refused("expected exactly one of input_ids and text; found " + ("both" if ids else "neither"))
    vocab_size = service.vocab_size
    if text is not None:
        batch = isinstance(text, list)
        given = text if batch else [text]
        if not given or not all(isinstance(t, str) and t for t in given):
            raise fields.unfit("text", text, "a text or a list of texts, none of them empty")
        return [service.encoded(t, "text") for t in given], batch
    if isinstance(ids, list) and ids and isinstance(ids[0], list):
        return [token_ids(prompt, f"input_ids[{i}]", vocab_size) for i, prompt in enumerate(ids)], True
    return [token_ids(ids, "input_ids", vocab_size)], False


def _rids(fields: Fields, batch: int | None) -> tuple[str, list[str]]:
    """The id of the whole, and of the request for each prompt."""
    rid = fields.take("rid")
    if rid is None:
        rid = new_id("")
    given = rid if isinstance(rid, list) else [rid] if batch is None else [f"{rid}_{i}" for i in range(batch)]
    if not all(isinstance(r, str) and r for r in given) or len(set(given)) != (batch or 1):
        wanted = "a text" if batch is None else f"a text, or a list of {batch} different ones"
        raise fields.unfit("rid", rid, wanted)
    return rid if isinstance(rid, str) else new_id(""), given


def _samplings(service: Service, fields: Fields, batch: int | None) -> list[tuple[TokenSampling, int]]:
    given = fields.take("sampling_params")
    if isinstance(given, list) and len(given) != batch:
        raise fields.unfit(
            "sampling_params", given, f"an object, or a list of {batch or 'as many as there are prompts'}"
        )
    each = given if isinstance(given, list) else [given] * (batch or 1)
    return [native_sampling(one, service.renderer.stop_ids, service.vocab_size) for one in each]


async def _scores(service: Service, asked: Asked) -> dict[str, list[float | None]]:
    """Log-probabilities of prompts from `scored_from` on, by request id; SGLang gives the first of them none."""
    if asked.scored_from < 0:
        return {}
    return {rid: await scored(service, group[0].prompt_ids, asked.scored_from) for rid, group in asked.jobs.items()}


async def _sampled(service: Service, asked: Asked) -> list[Generation]:
    """All completions; `max_new_tokens=0` is a prompt to be scored only."""
    nothing = Generation([], [], [], [], "length")
    wanted = [job for job in asked.flat if job.sampling.max_tokens]
    found = dict(zip((job.id for job in wanted), await sample(service.engine, wanted), strict=True))
    return [found.get(job.id, nothing) for job in asked.flat]


async def _events(
    service: Service, asked: Asked, scores: dict[str, list[float | None]]
) -> AsyncIterator[dict[str, Any]]:
    """Each event has everything that was drawn so far."""
    jobs = asked.flat
    so_far: list[Generation | None] = [None] * len(jobs)
    async with closing(pieces := stream(service.engine, jobs)):
        async for number, piece in pieces:
            whole = so_far[number] = joined(so_far[number], piece)
            answer = _answer(service, asked, jobs[number], whole, scores)
            yield {**answer, "index": number} if asked.many else answer
    for job, found in zip(jobs, so_far, strict=True):
        if found is not None:
            service.counters.sampled(len(job.prompt_ids), found.cached_tokens, len(found.ids))


def _answer(
    service: Service, asked: Asked, job: Job, generation: Generation, scores: dict[str, list[float | None]]
) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "id": job.id,
        "finish_reason": _finish_reason(generation),
        "prompt_tokens": len(job.prompt_ids),
        "completion_tokens": len(generation.ids),
        "cached_tokens": generation.cached_tokens,
        "weight_version": str(
            service.label._replace(version=generation.versions[-1]) if generation.versions else service.label
        ),
        "weight_versions": version_spans(generation.versions, service.owner),
        "e2e_latency": time.monotonic() - asked.begun,
    }
    if asked.logprobs:
        drawn = reported_logprobs(generation, job.sampling)
        meta["output_token_logprobs"] = _triples(service, asked, drawn, generation.ids)
        meta["plain_logprobs"] = generation.plain_logprobs
        prompt = scores.get(job.request, [])
        meta["input_token_logprobs"] = _triples(
            service, asked, prompt, job.prompt_ids[len(job.prompt_ids) - len(prompt) :]
        )
    text = without_stop(service.renderer.text(said_ids(generation)), generation.stopped_by)
    return {"text": text, "output_ids": generation.ids, "meta_info": meta}


def _triples(
    service: Service, asked: Asked, logprobs: Sequence[float | None], ids: Sequence[int]
) -> list[tuple[float | None, int, str | None]]:
    return [
        (logprob, token, service.renderer.text([token]) if asked.texts else None)
        for logprob, token in zip(logprobs, ids, strict=True)
    ]


def _finish_reason(generation: Generation) -> dict[str, Any] | None:
    match generation.finish_reason:
        case None:
            return None
        case "stop":
            return {"type": "stop", "matched": generation.stopped_by}
        case "length":
            return {"type": "length", "length": len(generation.ids)}
        case "abort":
            return {"type": "abort", "message": "the request was aborted"}
