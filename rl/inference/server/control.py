"""SGLang's routes beside `/generate`: abort, pause, weights, and what there is to know about the server."""

import asyncio
import time
from typing import get_args

from aiohttp import web

from envs.errors import UpswingError
from rl.inference.engine import EngineError, PauseMode, TokenSampling
from rl.inference.label import Label, read_label
from rl.inference.server.jobs import new_id
from rl.inference.server.requests import read, reply
from rl.inference.server.service import SERVICE, Service
from rl.inference.server.validation import Fields, Refused

_LABELS = "a whole number of at least 0, or its text, which may have @OWNER behind it"

HEALTH_TIMEOUT = 30.0
"""Seconds within which `/health_generate` has to get a token; the first one of a process compiles."""


async def abort_request(request: web.Request) -> web.Response:
    """Ends a request, or all of them: they answer with what they have."""
    fields = Fields(await read(request))
    everything, rid = fields.flag("abort_all"), fields.text("rid", "")
    fields.ignore("abort_message")
    fields.done()
    if not everything and not rid:
        raise Refused("expected rid, or abort_all=true; found neither", field="rid")
    await request.app[SERVICE].abort(None if everything else rid)
    return reply({"success": True, "message": "aborted"})


async def pause_generation(request: web.Request) -> web.Response:
    """Returns once nothing is being sampled. Modes: `abort` (the default, as in SGLang), `retract`, `in_place`."""
    service = request.app[SERVICE]
    fields = Fields(await read(request))
    mode = fields.text("mode", "abort")
    if mode not in get_args(PauseMode):
        raise fields.unfit("mode", mode, " or ".join(get_args(PauseMode)))
    fields.done()
    service.paused = mode  # already while what is under way comes to its end
    await service.engine.pause(mode)
    return reply({"status": "ok", "message": "Generation paused successfully."})


async def continue_generation(request: web.Request) -> web.Response:
    """Goes on after a pause."""
    service = request.app[SERVICE]
    fields = Fields(await read(request))
    fields.ignore("torch_empty_cache")
    fields.done()
    service.paused = None
    await service.engine.resume()
    return reply({"status": "ok", "message": "Generation continued successfully."})


async def flush_cache(request: web.Request) -> web.Response:
    """Forgets what finished requests left in the cache."""
    service = request.app[SERVICE]
    if service.paused == "in_place" and service.under_way:
        raise Refused(
            f"{service.under_way} completions are paused in_place and keep their cache; continue, or pause with "
            "mode=retract"
        )
    await service.engine.flush_cache()
    return reply({"success": True, "message": "Cache flushed."})


async def update_weights_from_disk(request: web.Request) -> web.Response:
    """Samples with the weights of a folder from here on. Requests under way go on; their tokens carry their version."""
    service = request.app[SERVICE]
    fields = Fields(await read(request))
    path = fields.text("model_path")
    if path is None:
        raise fields.unfit("model_path", None, "a folder of weights")
    wanted = _label(fields, "weight_version")
    abort, flush = fields.flag("abort_all_requests"), fields.flag("flush_cache", True)
    fields.only("load_format", ("auto",))
    fields.only("is_async", (False,))
    fields.ignore("torch_empty_cache", "keep_pause", "recapture_cuda_graph", "token_step", "manifest")
    fields.done()
    if service.load_weights is None:
        raise Refused("this server has no way to read weights from a folder", status=501)
    async with service.updating:
        label = _next_label(service, wanted)
        try:
            params = await service.load_weights(path)
        except UpswingError as error:
            raise Refused(f"model_path {path}: {error}", field="model_path") from error
        if abort:
            await service.abort(None)
        await service.engine.load_weights(params, label.version)
        service.owner = label.owner
        if service.score is not None:
            service.score.load(params)
        if flush:
            await service.engine.flush_cache()
    service.counters.weight_updates += 1
    return reply(
        {
            "success": True,
            "message": f"Weights of {path} loaded. Weight version updated to {label}.",
            "num_paused_requests": service.under_way if service.paused else 0,
        }
    )


async def update_weight_version(request: web.Request) -> web.Response:
    """Gives the weights there are another version, which may be smaller, and another owner or none."""
    service = request.app[SERVICE]
    fields = Fields(await read(request))
    label, abort = _label(fields, "new_version"), fields.flag("abort_all_requests")
    fields.done()
    if label is None:
        raise fields.unfit("new_version", None, _LABELS)
    async with service.updating:
        if abort:
            await service.abort(None)
        await service.engine.relabel(label.version)
        service.owner = label.owner
    return reply({"success": True, "message": f"Weight version updated to {label}", "new_version": str(label)})


async def model_info(request: web.Request) -> web.Response:
    """The model and its version."""
    service = request.app[SERVICE]
    return reply(
        {
            "model_path": service.model,
            "tokenizer_path": service.model,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": str(service.label),
            "context_length": service.engine.context,
            "vocab_size": service.vocab_size,
        }
    )


async def server_info(request: web.Request) -> web.Response:
    """The server and what it is doing."""
    from rl import __version__

    service = request.app[SERVICE]
    return reply(
        {
            "server": "upswing",
            "version": __version__,
            "model_path": service.model,
            "served_model_name": service.model,
            "weight_version": str(service.label),
            "context_length": service.engine.context,
            "max_running_requests": service.max_requests,
            "num_running_requests": service.under_way,
            "paused": service.paused,
            "uptime": time.monotonic() - service.counters.started,
        }
    )


async def health(request: web.Request) -> web.Response:
    """200 while the engine can serve."""
    await _healthy(request.app[SERVICE])
    return reply({"status": "ok"})


async def health_generate(request: web.Request) -> web.Response:
    """200 once a token was sampled; 503 where generation is paused or takes too long."""
    service = request.app[SERVICE]
    await _healthy(service)
    if service.paused:
        raise Refused(f"generation is paused ({service.paused})", status=503)
    sampling = TokenSampling(temperature=0.0, max_tokens=1)
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT):
            await service.engine.generate([0], sampling, request_id=new_id("health_"))
    except TimeoutError:
        raise Refused(f"no token came within {HEALTH_TIMEOUT:g} s", status=503) from None
    return reply({"status": "ok"})


async def get_load(request: web.Request) -> web.Response:
    """What is under way, as SGLang's router asks for it."""
    service = request.app[SERVICE]
    return reply([{"dp_rank": 0, "num_reqs": service.under_way, "num_waiting_reqs": 0, "num_tokens": 0}])


async def metrics(request: web.Request) -> web.Response:
    """Counters in Prometheus' text format."""
    service = request.app[SERVICE]
    gauges = {
        "requests_under_way": ("Completions being sampled or waiting for it.", float(service.under_way)),
        "weight_version": ("The policy version tokens are sampled with.", float(service.engine.version)),
        "compilations": ("Programs compiled by this process; stands still in steady state.", float(service.compiled())),
        "paused": ("1 while generation is paused.", float(service.paused is not None)),
    }
    return web.Response(
        text=service.counters.exposition(gauges), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    )


async def _healthy(service: Service) -> None:
    if service.draining:
        raise Refused("the server is shutting down", status=503)
    try:
        await service.engine.health()
    except EngineError as error:
        raise Refused(str(error), status=503) from error


def _label(fields: Fields, name: str) -> Label | None:
    """A policy version: a whole number, or (as SGLang has it) the text of one, and whose it is."""
    value = fields.take(name)
    if value is None:
        return None
    number = Label(value) if type(value) is int and value >= 0 else None
    label = read_label(value) if isinstance(value, str) else number
    if label is None:
        raise fields.unfit(name, value, _LABELS)
    return label


def _next_label(service: Service, wanted: Label | None) -> Label:
    """The version of new weights: the one after the current, unless the request names it.

    A smaller one than the current is refused: it comes from a trainer that does not know what this server holds, and
    its tokens could not be told from those of the first time that version was published. So is one of another owner.
    """
    current = service.label
    if wanted is None:
        return current._replace(version=current.version + 1)
    if current.owner and wanted.owner != current.owner:
        raise Refused(
            f"weight_version is {wanted}, but the server has weights of another run, {current}. "
            "Free it first: /update_weight_version",
            field="weight_version",
        )
    if wanted.owner == current.owner and wanted.version < current.version:
        raise Refused(
            f"weight_version is {wanted}, but the server has {current}; expected {current} or more. "
            "To begin anew, say so first: /update_weight_version",
            field="weight_version",
        )
    return wanted
