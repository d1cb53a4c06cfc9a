"""HTTP/1.1 for one server and short answers, at a third of the CPU time that aiohttp takes for the same.

A request is one write and its answer is read whole. There are no cookies, no proxies, no pipelining, and nobody is sent
elsewhere: what a client of a language model does not need.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from urllib.parse import urlsplit

_IDLE_SECONDS = 4.0  # servers close what is idle, many after 5 s: better not to be writing at that moment
_LONGEST_HEAD = 2**16


class Broken(Exception):
    """The connection ended before the answer did, or what came is no HTTP."""


class Unreachable(Exception):
    """There is no connection. The cause is an OSError, or a TimeoutError if it took too long."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said. Names of headers are in small letters; of two with one name the last counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connections:
    """Connections to one server, kept for the next request, of one event loop.

    Args:
        url: of the server; its path does not matter.
        headers: of every request.
        most: how many there may be; further requests wait.
        patience: seconds that connecting may take.
    """

    def __init__(self, url: str, headers: Mapping[str, str], *, most: int, patience: float) -> None:
        parts = urlsplit(url)
        self._host, self._tls = parts.hostname or "", None
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        if parts.scheme == "https":
            self._tls = ssl.create_default_context()
        host = parts.netloc.rpartition("@")[2]
        fixed = {"Host": host, "Accept": "application/json", **headers}
        if any("\n" in value or "\r" in value for value in fixed.values()):
            raise ValueError("a header has a line break in it")
        self._head = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())
        self._patience = patience
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._room = asyncio.Semaphore(most)

    async def request(self, method: str, target: str, body: bytes = b"") -> Answer:
        """One request. Whoever calls limits its time; a connection whose answer nobody awaits any more is closed.

        Args:
            method: such as POST.
            target: path and query.
            body: sent as it is.

        Raises:
            Broken, Unreachable: see there.
        """
        head = f"{method} {target} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        data = head.encode("latin-1") + body
        async with self._room:
            connection = self._free()
            if connection is not None:
                try:
                    return await self._exchange(connection, data)
                except Broken:
                    if connection.heard:
                        raise
                    # The server closed it while it was idle, and has not seen the request.
            return await self._exchange(await self._connect(), data)

    async def _exchange(self, connection: _Connection, data: bytes) -> Answer:
        try:
            answer = await connection.exchange(data)
        except BaseException:
            self._drop(connection)
            raise
        if connection.reusable:
            connection.since = monotonic()
            self._idle.append(connection)
        else:
            self._drop(connection)
        return answer

    def _free(self) -> _Connection | None:
        """The connection that was used last, if it can still be."""
        while self._idle:
            connection = self._idle.pop()
            if connection.open and monotonic() - connection.since < _IDLE_SECONDS:
                return connection
            self._drop(connection)
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._patience):
                _, connection = await loop.create_connection(
                    _Connection, self._host, self._port, ssl=self._tls, happy_eyeballs_delay=0.25
                )
        except (OSError, TimeoutError) as error:
            raise Unreachable(str(error)) from error
        self._all.add(connection)
        return connection

    def _drop(self, connection: _Connection) -> None:
        self._all.discard(connection)
        connection.close()

    async def close(self) -> None:
        """Closes all of them."""
        connections, self._all, self._idle = self._all, set(), []
        for connection in connections:
            connection.close()
        await asyncio.gather(*(connection.closed for connection in connections))


class _Connection(asyncio.Protocol):
    """One connection, and the answer that is coming in on it."""

    __slots__ = ("_answer", "_data", "_head", "_length", "_pieces", "_transport", "closed", "heard", "open", "since")

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self.open, self.heard, self.since = False, False, 0.0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer: asyncio.Future[Answer] | None = None
        self._forget()

    def _forget(self) -> None:
        self._data = bytearray()
        self._head: tuple[int, dict[str, str]] | None = None
        self._length: int | None = None  # of the body, if the head says it
        self._pieces: list[bytes] | None = None  # of a body that comes in chunks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.open = transport, True

    @property
    def reusable(self) -> bool:
        """Whether another request can follow."""
        return self.open and not self._transport.is_closing()

    async def exchange(self, data: bytes) -> Answer:
        if not self.open:
            raise Broken("the server closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self.heard = False
        self._transport.write(data)
        try:
            return await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self._answer is None:  # nobody asked
            self._transport.abort()
            return
        self._data += data
        try:
            self._read()
        except (Broken, ValueError, zlib.error) as error:
            self._fail(error)

    def eof_received(self) -> None:
        if self._head is not None and self._length is None and self._pieces is None:
            self._finish(self._data, keep=False)  # the body was to end with the connection

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if not self.closed.done():
            self.closed.set_result(None)
        self._fail(Broken(str(error) if error is not None else "the server closed the connection"))

    def _read(self) -> None:
        """Looks whether the answer is complete."""
        while self._head is None:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                if len(self._data) > _LONGEST_HEAD:
                    raise Broken("the head of the answer does not end")
                return
            status, headers = _parse_head(self._data[:end])
            del self._data[: end + 4]
            if status == 100:  # go on, it says
                continue
            self._head = status, headers
            if headers.get("transfer-encoding", "").lower().endswith("chunked"):
                self._pieces = []
            elif status in (204, 304) or "content-length" in headers:
                self._length = 0 if status in (204, 304) else int(headers["content-length"])
                if self._length < 0:
                    raise Broken(f"an answer of {self._length} bytes")
        if self._pieces is not None:
            if _take_chunks(self._data, self._pieces):
                self._finish(b"".join(self._pieces))
        elif self._length is not None and len(self._data) >= self._length:
            if len(self._data) > self._length:
                raise Broken("more bytes than the answer was to have")
            self._finish(self._data)

    def _finish(self, body: bytes | bytearray, keep: bool = True) -> None:
        assert self._head is not None
        status, headers = self._head
        if headers.get("content-encoding", "identity").lower() in ("gzip", "deflate"):
            body = zlib.decompress(body, 47)  # whichever of the two it really is
        if not keep or headers.get("connection", "").lower() == "close":
            self._transport.close()
        self._forget()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(status, headers, bytes(body)))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error if isinstance(error, Broken) else Broken(str(error)))
        if self.open:
            self._transport.abort()


def _parse_head(head: bytes | bytearray) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise Broken(f"an answer that is no HTTP: {first[:80]!r}")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise Broken(f"a header without a colon: {line[:80]!r}")
        headers[name.lower()] = value.strip()
    return int(rest[:3]), headers


def _take_chunks(data: bytearray, pieces: list[bytes]) -> bool:
    """Moves the chunks that are complete from the data to the pieces; whether the last one has been."""
    at = 0
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end].partition(b";")[0], 16)
        if size == 0:
            if data.find(b"\r\n\r\n", end) < 0:  # trailers may follow
                break
            data.clear()
            return True
        if len(data) < end + size + 4:
            break
        pieces.append(bytes(data[end + 2 : end + 2 + size]))
        at = end + size + 4
    del data[:at]
    return False
