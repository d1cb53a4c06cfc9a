"""What OpenAI's routes have in common: names, errors, usage, log-probabilities; and the list of models."""

import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from rl.inference.engine import Generation
from rl.inference.server.jobs import Job, new_id, reported_logprobs
from rl.inference.server.requests import reply
from rl.inference.server.service import SERVICE, Service
from rl.inference.server.validation import Fields, Refused

_TYPES = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error"}


async def models(request: web.Request) -> web.Response:
    """The one model there is."""
    return reply({"object": "list", "data": [_card(request.app[SERVICE])]})


async def model(request: web.Request) -> web.Response:
    """The model by its name."""
    service = request.app[SERVICE]
    _check_name(service, request.match_info["name"])
    return reply(_card(service))


def error_body(refused: Refused) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = _TYPES.get(refused.status, "invalid_request_error" if refused.status < 500 else "server_error")
    return {"error": {"message": str(refused), "type": kind, "param": refused.field, "code": refused.code}}


def check_model(service: Service, fields: Fields) -> None:
    """Refuses a request for another model; one that names none means the one there is."""
    name = fields.text("model")
    if name is not None:
        _check_name(service, name)


def streaming(fields: Fields) -> tuple[bool, bool]:
    """Whether the answer is a stream, and whether that ends with the usage."""
    streamed = fields.flag("stream")
    options = fields.take("stream_options", {})
    if not isinstance(options, dict):
        raise fields.unfit("stream_options", options, "an object")
    below = Fields(options, "stream_options")
    usage = below.flag("include_usage")
    below.ignore("include_obfuscation")
    below.done()
    return streamed, usage


def envelope(service: Service, kind: str, rid: str) -> dict[str, Any]:
    """What every answer and every event of a stream begins with."""
    return {"id": rid, "object": kind, "created": int(time.time()), "model": service.model}


def usage(jobs: Sequence[Job], found: Sequence[Generation]) -> dict[str, Any]:
    """Tokens read and written; a prompt with several completions counts once."""
    first = {job.request: (job, generation) for job, generation in reversed(list(zip(jobs, found, strict=True)))}
    prompt = sum(len(job.prompt_ids) for job, _ in first.values())
    completion = sum(len(generation.ids) for generation in found)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(g.cached_tokens for _, g in first.values())},
    }


def count(service: Service, jobs: Sequence[Job], found: Sequence[Generation]) -> None:
    """Adds what was sampled to the counters."""
    for job, generation in zip(jobs, found, strict=True):
        service.counters.sampled(len(job.prompt_ids), generation.cached_tokens, len(generation.ids))


def token_logprobs(service: Service, job: Job, generation: Generation) -> list[dict[str, Any]]:
    """Each sampled token with its log-probability, as chat completions have it."""
    found = zip(generation.ids, reported_logprobs(generation, job.sampling), strict=True)
    named = ((service.renderer.text([token]), logprob) for token, logprob in found)
    return [
        # A token that is a part of a character has no text, and we do not know its bytes.
        {"token": t, "logprob": p, "bytes": None if "\ufffd" in t else list(t.encode()), "top_logprobs": []}
        for t, p in named
    ]


def request_id(fields: Fields, prefix: str) -> str:
    """The id of a request: its own `rid` (SGLang) or `request_id` (vLLM), else a new one."""
    rid, other = fields.text("rid"), fields.text("request_id")
    return rid or other or new_id(prefix)


def _check_name(service: Service, name: str) -> None:
    if name != service.model:
        raise Refused(
            f"the model '{name}' does not exist; this server has '{service.model}'",
            status=404,
            field="model",
            code="model_not_found",
        )


def _card(service: Service) -> dict[str, Any]:
    return {
        "id": service.model,
        "object": "model",
        "created": service.created,
        "owned_by": "upswing",
        "root": service.model,
        "max_model_len": service.engine.context,
    }
