"""`/v1/chat/completions`."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from envs.errors import UpswingError
from envs.types import Message, ToolSchema
from rl.inference.engine import Generation
from rl.inference.server.jobs import Job, jobs_of, joined, new_id, sample, stream, version_spans
from rl.inference.server.messages import read_messages, read_tools
from rl.inference.server.openai import (
    check_model,
    count,
    envelope,
    error_body,
    request_id,
    streaming,
    token_logprobs,
    usage,
)
from rl.inference.server.requests import read, reply
from rl.inference.server.sampling import openai_sampling
from rl.inference.server.service import SERVICE, Service
from rl.inference.server.sse import closing, send_events
from rl.inference.server.text import Unfolding
from rl.inference.server.validation import Fields, Refused
from rl.rollout.client import without_stop


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes:
        rid: its id.
        jobs: its completions.
        tools: what the model may call.
        logprobs: whether the tokens' log-probabilities are wanted.
        ids: whether the exact tokens are.
        stream: whether the answer is a stream of events.
        usage: whether that ends with the tokens used.
    """

    rid: str
    jobs: list[Job]
    tools: list[ToolSchema]
    logprobs: bool
    ids: bool
    stream: bool
    usage: bool


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answers a conversation."""
    service = request.app[SERVICE]
    asked = _asked(service, Fields(await read(request)))
    with service.admitted(asked.rid, {asked.rid: asked.jobs}):
        if asked.stream:
            return await send_events(request, _chunks(service, asked), error_body)
        found = await sample(service.engine, asked.jobs)
    count(service, asked.jobs, found)
    choices = [
        _choice(service, asked, number, job, generation)
        for number, (job, generation) in enumerate(zip(asked.jobs, found, strict=True))
    ]
    answer = {**envelope(service, "chat.completion", asked.rid), "choices": choices, "usage": usage(asked.jobs, found)}
    return reply({**answer, "prompt_token_ids": asked.jobs[0].prompt_ids} if asked.ids else answer)


def _asked(service: Service, fields: Fields) -> Asked:
    check_model(service, fields)
    messages, tools = read_messages(fields.take("messages")), read_tools(fields)
    try:
        prompt_ids = service.renderer.prompt(messages, tools)
    except UpswingError as error:
        raise Refused(f"messages: {error}", field="messages") from error
    rid = request_id(fields, "chatcmpl-")
    room = service.engine.context - len(prompt_ids)
    sampling, n = openai_sampling(fields, service.renderer.stop_ids, service.vocab_size, room)
    streamed, with_usage = streaming(fields)
    logprobs, ids = fields.flag("logprobs"), fields.flag("return_token_ids")
    fields.only("top_logprobs", (0,), "only the log-probabilities of the sampled tokens are kept")
    fields.only("response_format", ({"type": "text"},), "constrained decoding is not supported")
    for name in ("functions", "function_call", "modalities", "audio", "prediction", "reasoning_effort"):
        fields.only(name, (), "it is not supported")
    fields.done()
    return Asked(rid, jobs_of(rid, prompt_ids, sampling, n), tools, logprobs, ids, streamed, with_usage)


def _message(service: Service, asked: Asked, job: Job, generation: Generation) -> Message:
    """The message that a completion spells, without the stop text that ended it."""
    message = service.renderer.parse(generation.ids, prompt_ids=job.prompt_ids, tools=asked.tools)
    if isinstance(generation.stopped_by, str):
        message = without_stop(message, generation.stopped_by)
    if calls := message.get("tool_calls"):
        message = {**message, "tool_calls": [{**call, "id": new_id("call_")} for call in calls]}
    return message


def _choice(service: Service, asked: Asked, number: int, job: Job, generation: Generation) -> dict[str, Any]:
    message = _message(service, asked, job, generation)
    logprobs = {"content": token_logprobs(service, job, generation), "refusal": None} if asked.logprobs else None
    choice = {
        "index": number,
        "message": {"refusal": None, **message},
        "logprobs": logprobs,
        "finish_reason": _finish_reason(message, generation),
    }
    return {**choice, **_exact(generation)} if asked.ids else choice


def _finish_reason(message: Message, generation: Generation) -> str | None:
    return (
        "tool_calls" if message.get("tool_calls") and generation.finish_reason == "stop" else generation.finish_reason
    )


def _exact(generation: Generation) -> dict[str, Any]:
    """The exact tokens (as vLLM has them), and the policy version of each (as SGLang has it)."""
    return {"token_ids": generation.ids, "weight_versions": version_spans(generation.versions)}


async def _chunks(service: Service, asked: Asked) -> AsyncIterator[dict[str, Any]]:
    """A chunk with the role per choice, chunks with what is new, one with the finish reason, and the usage."""
    head = {**envelope(service, "chat.completion.chunk", asked.rid)}
    choices = [_Growing(service, asked, number, job) for number, job in enumerate(asked.jobs)]
    begun = False
    async with closing(pieces := stream(service.engine, asked.jobs)):
        async for number, piece in pieces:
            if not begun:
                for choice in choices:
                    first = {**head, "choices": [choice.chunk({"role": "assistant", "content": ""})]}
                    yield {**first, "prompt_token_ids": asked.jobs[0].prompt_ids} if asked.ids else first
                begun = True
            for chunk in choices[number].take(piece):
                yield {**head, "choices": [chunk]}
    found = [choice.whole for choice in choices if choice.whole is not None]
    count(service, asked.jobs, found)
    if asked.usage:
        yield {**head, "choices": [], "usage": usage(asked.jobs, found)}


class _Growing:
    """One choice of a stream."""

    def __init__(self, service: Service, asked: Asked, number: int, job: Job) -> None:
        self._service, self._asked, self._number, self._job = service, asked, number, job
        stop = job.sampling.stop
        self._content = Unfolding(stop, tools=bool(asked.tools))
        self._reasoning = Unfolding(stop)
        self.whole: Generation | None = None

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": self._number, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    def take(self, piece: Generation) -> Iterator[dict[str, Any]]:
        """The chunks that a piece makes."""
        whole = self.whole = joined(self.whole, piece)
        over = whole.finish_reason is not None
        message = _message(self._service, self._asked, self._job, whole)
        delta: dict[str, Any] = {}
        for name, unfolding in (("reasoning_content", self._reasoning), ("content", self._content)):
            text: str = message.get(name) or ""  # type: ignore[assignment]
            if fresh := unfolding.finish(text) if over else unfolding.update(text):
                delta[name] = fresh
        exact = {**self._logprobs(piece), **(_exact(piece) if self._asked.ids else {})}
        if delta or exact:
            yield {**self.chunk(delta), **exact}
        if over:
            calls = message.get("tool_calls", [])
            if calls:
                yield self.chunk({"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]})
            yield self.chunk({}, _finish_reason(message, whole))

    def _logprobs(self, piece: Generation) -> dict[str, Any]:
        if not self._asked.logprobs:
            return {}
        return {"logprobs": {"content": token_logprobs(self._service, self._job, piece), "refusal": None}}
