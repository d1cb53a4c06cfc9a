"""OpenAI's chat completions on the wire: what is sent, and what the answers mean."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from envs.errors import ConfigError, ContextLengthError, InfrastructureError, UpswingError
from envs.types import Completion, FinishReason, Message, Sampling, ToolCall, ToolSchema

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_CUT_OFF = frozenset(("length", "max_tokens", "model_length"))
_BROKEN = frozenset(("abort", "error"))
# As OpenAI, vLLM, SGLang, llama.cpp, Anthropic-compatible fronts and our engine put it.
_TOO_LONG = re.compile(
    r"context[_ ]length|context[_ ]window|context size|prompt is too long|longer than the model|"
    r"exceeds? the (maximum|available|model)[^.]*(length|context|tokens)",
    re.IGNORECASE,
)


def encode(
    model: str,
    messages: Sequence[Message],
    tools: Sequence[ToolSchema],
    sampling: Sampling,
    extra: Mapping[str, Any],
) -> bytes:
    """The request's body. What `sampling` leaves open is not sent; a field of `extra` that is None is taken out.

    Earlier reasoning is not sent back: chat formats hide it from the model, and some servers refuse it.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [_without_reasoning(message) for message in messages],
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.top_p != 1.0:
        body["top_p"] = sampling.top_p
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.stop:
        body["stop"] = sampling.stop
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if tools:
        body["tools"] = tools
    if extra:
        body.update(extra)
        body = {name: value for name, value in body.items() if value is not None}
    try:
        return _ENCODER.encode(body).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which a model wrote: it has no UTF-8, but an escape
        return json.dumps(body, separators=(",", ":")).encode()


def parse_completion(raw: bytes, url: str) -> Completion:
    """What a 200 answer says. Tokens and their policy versions are read where a server gives them: `rl serve` and vLLM
    do when they are asked to `return_token_ids`.

    Raises:
        InfrastructureError: if it is no chat completion, or the server gave up on it.
    """
    try:
        data = json.loads(raw)
        choice = data["choices"][0]
        answer = choice["message"]
        content = answer.get("content")
        thought = answer.get("reasoning_content") or answer.get("reasoning")
        calls = [_tool_call(call, i) for i, call in enumerate(answer.get("tool_calls") or ())]
        reason = choice.get("finish_reason")
        tokens = (choice.get("logprobs") or {}).get("content")
        logprobs = None if tokens is None else _finite([float(token["logprob"]) for token in tokens])
        prompt_ids, completion_ids = _tokens(data.get("prompt_token_ids")), _tokens(choice.get("token_ids"))
        versions = _versions(choice.get("weight_versions"))
        usage = {k: v for k, v in (data.get("usage") or {}).items() if isinstance(v, int)}
        if completion_ids is not None and logprobs is not None and len(completion_ids) != len(logprobs):
            raise ValueError(f"{len(completion_ids)} tokens and {len(logprobs)} log-probabilities")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise InfrastructureError(
            f"{url} answered something that is no chat completion ({type(error).__name__}: {error}): {_excerpt(raw)}"
        ) from None
    if reason in _BROKEN or not isinstance(content, str | None):
        raise InfrastructureError(f"{url} gave up on the completion (finish_reason {reason!r}): {_excerpt(raw)}")
    message: Message = {"role": "assistant", "content": content}
    if isinstance(thought, str) and thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    finish: FinishReason = "length" if reason in _CUT_OFF else "tool_calls" if calls else "stop"
    return Completion(
        message,
        finish,
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        logprobs=logprobs,
        versions=versions,
        usage=usage,
    )


def parse_piece(data: bytes, url: str) -> tuple[str, FinishReason | None]:
    """What one event of a streamed answer adds to the text (reasoning counts as text), and why the answer ends, if so.

    Raises:
        InfrastructureError: if it is no piece of a chat completion, or the server gave up on it.
    """
    try:
        event = json.loads(data)
        choices = event["choices"]
        if not choices:
            return "", None  # the count of tokens, which some servers send last
        delta, reason = choices[0]["delta"], choices[0].get("finish_reason")
        text = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InfrastructureError(
            f"{url} streamed something that is no chat completion ({type(error).__name__}: {error}): {_excerpt(data)}"
        ) from None
    if reason in _BROKEN:
        raise InfrastructureError(f"{url} gave up on the completion (finish_reason {reason!r})")
    return text, None if reason is None else "length" if reason in _CUT_OFF else "stop"


def refusal(status: int, raw: bytes, url: str, model: str) -> UpswingError:
    """The error for an answer that repeating the request would not change."""
    said = _excerpt(raw)
    if status in (400, 413, 422) and _TOO_LONG.search(raw.decode("utf-8", "replace")):
        return ContextLengthError(f"the prompt does not fit into the context of '{model}': {said}")
    if status in (401, 403):
        return ConfigError(f"{url} refused the key ({status}): {said}; set api_key or OPENAI_API_KEY")
    if status == 404:
        return ConfigError(
            f"{url} knows no model '{model}', or the path is wrong (404): {said}; base_url usually ends in /v1"
        )
    return ConfigError(f"{url} refused the request ({status}): {said}")


def retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks to wait; None if there is none to be understood."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when.replace(tzinfo=when.tzinfo or UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _without_reasoning(message: Message) -> Message:
    if "reasoning_content" not in message:
        return message
    shown = message.copy()
    del shown["reasoning_content"]
    return shown


def _finite(logprobs: list[float]) -> list[float]:
    if not all(map(math.isfinite, logprobs)):
        raise ValueError(f"a log-probability is {next(p for p in logprobs if not math.isfinite(p))}")
    return logprobs


def _tokens(ids: Any) -> list[int] | None:
    return None if ids is None else [int(token) for token in ids]


def _versions(spans: Any) -> list[int] | None:
    """One version per token, of spans `{"version", "start", "end"}`."""
    if spans is None:
        return None
    return [int(span["version"]) for span in spans for _ in range(span["start"], span["end"])]


def _tool_call(call: Mapping[str, Any], index: int) -> ToolCall:
    function = call["function"]
    arguments = function.get("arguments") or ""
    return {
        "id": call.get("id") or f"call_{index}",
        "type": "function",
        "function": {
            "name": str(function["name"]),
            "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
        },
    }


def _excerpt(raw: bytes) -> str:
    text = raw[:300].decode("utf-8", "replace")
    return repr(text if len(raw) <= 300 else text + "…")
