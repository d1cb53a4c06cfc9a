"""Asking a server: JSON over one pool of connections, with errors that say who answered what."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import aiohttp

from rl.inference.engine import EngineError

CONNECT_S = 10.0
"""Within which a server on the network accepts a connection, or is taken for gone."""

GET_TRIES = 3
WAIT_S = 0.2
"""Before a GET is tried again."""

_SHOWN = 300
_LARGEST_EVENT = 1 << 26


class Unreachable(EngineError):
    """No answer: the connection was refused, broke, or stayed silent too long.

    What was asked may have been done or be under way all the same, unless `refused`.

    Attributes:
        refused: the server never got the request.
        silent: it got it, and has said nothing for as long as it may.
    """

    def __init__(self, message: str, *, refused: bool = False, silent: bool = False) -> None:
        super().__init__(message)
        self.refused, self.silent = refused, silent


class Rejected(EngineError):
    """The server answered that it will not.

    Attributes:
        status: of HTTP.
        said: the server's own words.
    """

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status = status
        self.said = said


class Http:
    """A pool of connections to any number of servers; to be used in one event loop, and closed.

    Args:
        timeout: seconds without a byte before an answer is given up; requests may name their own.
        headers: sent with every request, such as an API key.
    """

    def __init__(self, *, timeout: float = 60.0, headers: Mapping[str, str] | None = None) -> None:
        self._timeout = timeout
        self._headers = dict(headers or {})
        self._session: aiohttp.ClientSession | None = None

    async def get(self, url: str, path: str, *, timeout: float | None = None) -> Any:
        """The JSON of an answer, None where it is empty. Asking again does no harm: a broken connection is tried anew.

        Raises:
            Unreachable: after `GET_TRIES` times.
            Rejected: for a status of 400 or more.
            EngineError: when the answer is no JSON.
        """
        for left in reversed(range(GET_TRIES)):
            try:
                return await self._ask("GET", url, path, None, timeout, {})
            except Unreachable:
                if not left:
                    raise
            await asyncio.sleep(WAIT_S)

    async def post(
        self,
        url: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        words: bool = False,
    ) -> Any:
        """As `get`, but asked once: whether it may be asked again, the caller knows.

        Args:
            words: the answer may be plain words, which are returned as text.
        """
        return await self._ask("POST", url, path, body or {}, timeout, headers or {}, words)

    async def events(
        self,
        url: str,
        path: str,
        body: Mapping[str, Any],
        *,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Any, None]:
        """The events of an answer that is a stream, each as JSON, up to `[DONE]`.

        Raises:
            Unreachable: also when the stream breaks off before its end.
            Rejected: also for an event that says so.
            EngineError: for an event that is no JSON.
        """
        where = f"{url}{path}"
        try:
            async with self._request("POST", url, path, body, timeout, headers or {}) as response:
                if response.status >= 400:
                    raise _rejected(where, response.status, await response.text())
                async for line in response.content:
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        return
                    event = _parsed(where, data.decode(errors="replace"))
                    if isinstance(event, dict) and isinstance(event.get("error"), dict):
                        error = event["error"]
                        raise _rejected(where, int(error.get("code") or 400), json.dumps(event))
                    yield event
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise self._unreachable(where, error, timeout) from error
        raise Unreachable(f"{where} broke off before the end of its stream")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _request(
        self,
        method: str,
        url: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout: float | None,
        headers: Mapping[str, str],
    ) -> Any:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), headers=self._headers, read_bufsize=_LARGEST_EVENT
            )
        silence = self._timeout if timeout is None else timeout
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence)
        return self._session.request(method, url + path, json=body, timeout=limits, headers=headers)

    async def _ask(
        self,
        method: str,
        url: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout: float | None,
        headers: Mapping[str, str],
        words: bool = False,
    ) -> Any:
        where = f"{url}{path}"
        try:
            async with self._request(method, url, path, body, timeout, headers) as response:
                text = await response.text(errors="replace")
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise self._unreachable(where, error, timeout) from error
        if response.status >= 400:
            raise _rejected(where, response.status, text)
        if words and response.content_type != "application/json":
            return text
        return _parsed(where, text) if text.strip() else None

    def _unreachable(self, where: str, error: Exception, timeout: float | None) -> Unreachable:
        if isinstance(error, aiohttp.ClientConnectorError):
            return Unreachable(f"nobody answers at {where}: {error.os_error}; does the server run?", refused=True)
        if isinstance(error, TimeoutError):
            silence = self._timeout if timeout is None else timeout
            return Unreachable(f"{where} said nothing for {silence:g} s", silent=True)
        return Unreachable(f"the connection to {where} broke: {error or type(error).__name__}")


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise EngineError(
            f"{where} answered what is no JSON: {text[:_SHOWN]!r}; is it an SGLang server, or `rl serve`?"
        ) from None


def _rejected(where: str, status: int, text: str) -> Rejected:
    said = _said(text)
    return Rejected(f"{where} refused with status {status}: {said}", status, said)


def _said(text: str) -> str:
    """What a server gives as its reason, in any of the forms there are."""
    try:
        answer = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:_SHOWN] or "(no reason given)"
    if isinstance(answer, dict):
        for key in ("error", "message", "detail", "error_message"):
            found = answer.get(key)
            if isinstance(found, dict) and "message" in found:
                return str(found["message"])
            if found:
                return found if isinstance(found, str) else json.dumps(found)[:_SHOWN]
    return json.dumps(answer)[:_SHOWN]
