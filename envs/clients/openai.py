"""Any server that speaks OpenAI's chat completions: SGLang, vLLM, llama.cpp, OpenAI, our own engine."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from envs.clients.http import Broken, Connections, Unreachable
from envs.clients.openai_wire import encode, parse_completion, parse_piece, refusal, retry_after
from envs.errors import ConfigError, InfrastructureError
from envs.types import Completion, FinishReason, Message, Sampling, ToolSchema, Turn

_RETRIED = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
_LONGEST_WAIT = 120.0
_CONNECT_TIMEOUT = 10.0


class OpenAIClient:
    """A chat client over HTTP that keeps its connections and rides out what passes.

    Broken connections and the answers 408, 409, 425, 429 and 5xx are tried again: after an exponential, jittered wait,
    or after the `Retry-After` that the server names (up to two minutes). A request that gets no answer within `timeout`
    is not repeated here: the rollout is (see `run_task`).

    Args:
        base_url: up to and with the version, for example "http://localhost:30000/v1".
        model: the model's name at that server.
        api_key: sent as a bearer token; by default the environment variable OPENAI_API_KEY, if it is set.
        timeout: the most seconds from request to complete answer.
        retries: how often a request is repeated.
        backoff: seconds before the first repetition; doubles with each.
        max_connections: the most requests in flight; further ones wait for a free connection.
        logprobs: ask for the log-probability of every sampled token.
        extra_body: further fields of the request; a field with None is left out of it, so that
            `{"max_tokens": None, "max_completion_tokens": 512}` renames one. `{"return_token_ids": True}` asks
            `rl serve` or vLLM for the exact tokens, which the completion then carries.

    Raises:
        ConfigError: for a URL without http:// or https://.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 5,
        backoff: float = 0.5,
        max_connections: int = 256,
        logprobs: bool = False,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url is {base_url!r}; expected something like http://localhost:30000/v1")
        self.base_url = base_url.rstrip("/")
        self.model = model
        self._api_key = api_key if api_key is not None else os.environ.get("OPENAI_API_KEY", "")
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._max_connections = max_connections
        self._extra = {**({"logprobs": True} if logprobs else {}), **(extra_body or {})}
        self._url = f"{self.base_url}/chat/completions"
        scheme, _, rest = self.base_url.partition("://")
        self._origin = len(scheme) + 3 + len(rest.partition("/")[0])  # where the path begins
        self._headers = {"Content-Type": "application/json"}
        if self._api_key:
            self._headers["Authorization"] = f"Bearer {self._api_key}"
        self._connections: Connections | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"OpenAIClient({self.base_url!r}, {self.model!r})"  # without the key

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
        sampling: Sampling = Sampling(),
        *,
        previous: Turn | None = None,
    ) -> Completion:
        """Answers `messages`; see `Client.complete`.

        Raises:
            InfrastructureError: no answer, or one that is no chat completion.
            ContextLengthError: the server says that the prompt is too long.
            ConfigError: the server refuses the request: key, model name, a parameter it does not know.
        """
        body = encode(self.model, messages, tools, sampling, self._extra)
        raw = await self._request("POST", self._url, body)
        return parse_completion(raw, self._url)

    async def stream(
        self, messages: Sequence[Message], sampling: Sampling = Sampling()
    ) -> AsyncGenerator[tuple[str, FinishReason | None], None]:
        """Answers `messages` piece by piece: text, and with the last piece why it ends. For a person who reads along:
        nothing is repeated, and tools are not offered.

        Raises:
            InfrastructureError, ContextLengthError, ConfigError: see `complete`.
        """
        import aiohttp

        body = encode(self.model, messages, (), sampling, {**self._extra, "stream": True})
        timeout = aiohttp.ClientTimeout(total=self._timeout, sock_connect=_CONNECT_TIMEOUT)
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, timeout=timeout) as session,
                session.post(self._url, data=aiohttp.BytesPayload(body)) as response,
            ):
                if response.status != 200:
                    raw = await response.read()
                    if response.status in _RETRIED:
                        raise InfrastructureError(f"{self._url} answered {response.status}: {raw[:300]!r}")
                    raise refusal(response.status, raw, self._url, self.model)
                async for line in response.content:
                    field, _, data = line.strip().partition(b":")
                    if field == b"data" and data.strip() != b"[DONE]":
                        yield parse_piece(data, self._url)
        except TimeoutError:
            raise InfrastructureError(f"{self._url} did not finish its answer within {self._timeout:g} s") from None
        except aiohttp.ClientError as error:
            raise InfrastructureError(f"{self._url} broke off ({type(error).__name__}: {error})") from error

    async def check(self) -> list[str]:
        """Fails early: asks the server for its models and returns their names.

        Raises:
            InfrastructureError: if it cannot be reached.
            ConfigError: if it refuses the key, or there is no such API under the URL.
        """
        url = f"{self.base_url}/models"
        raw = await self._request("GET", url, b"")
        try:
            return [str(model["id"]) for model in json.loads(raw)["data"]]
        except (ValueError, KeyError, TypeError):
            excerpt = raw[:200].decode("utf-8", "replace")
            raise ConfigError(
                f"{url} is not an OpenAI-compatible API: it answered {excerpt!r}; base_url usually ends in /v1"
            ) from None

    async def close(self) -> None:
        """Closes the connections. The client may be used again after that."""
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.close()

    async def _request(self, method: str, url: str, body: bytes) -> bytes:
        """The body of a 200 answer, after as many repetitions as it takes and is allowed."""
        connections = self._open_connections()
        target = url[self._origin :]
        for attempt in range(self._retries + 1):
            wait = min(self._backoff * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1.0)
            try:
                async with asyncio.timeout(self._timeout):
                    answer = await connections.request(method, target, body)
                if answer.status == 200:
                    return answer.body
                if "location" in answer.headers and 300 <= answer.status < 400:
                    problem = (
                        f"answered {answer.status}: it has moved to {answer.headers['location']}; is base_url right?"
                    )
                elif answer.status not in _RETRIED:
                    raise refusal(answer.status, answer.body, url, self.model)
                else:
                    problem = f"answered {answer.status}: {answer.body[:300].decode('utf-8', 'replace')!r}"
                asked = retry_after(answer.headers.get("retry-after"))
                if asked is not None:
                    problem += f" and asked to wait {asked:g} s"
                    wait += asked  # the jitter stays, so that not everyone who was told to wait returns at once
            except Unreachable as error:
                problem = f"cannot be reached ({error}); is the server running, and base_url right?"
                if isinstance(error.__cause__, TimeoutError):
                    problem = f"did not accept a connection within {_CONNECT_TIMEOUT:g} s"
            except TimeoutError:
                raise InfrastructureError(
                    f"{url} did not answer within {self._timeout:g} s; is it overloaded, or `timeout` too short?"
                ) from None
            except Broken as error:
                problem = f"broke off ({error})"
            if attempt == self._retries or wait > _LONGEST_WAIT:
                break
            await asyncio.sleep(wait)
        tried = "once" if attempt == 0 else f"{attempt + 1} times"
        raise InfrastructureError(f"{url} {problem} (tried {tried})")

    def _open_connections(self) -> Connections:
        """The connections, of the event loop that first needed them."""
        loop = asyncio.get_running_loop()
        if self._connections is None:
            self._loop = loop
            self._connections = Connections(
                self.base_url, self._headers, most=self._max_connections, patience=_CONNECT_TIMEOUT
            )
        elif loop is not self._loop:
            raise RuntimeError(f"{self!r} has connections in another event loop; close it there, or make a new client")
        return self._connections
