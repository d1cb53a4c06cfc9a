"""How bytes get to a warden and back, whatever carries them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
import signal
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Protocol

_CLOSE_SECONDS = 10.0
_PIECE = 2**18  # bytes sent at once: what every service takes


class Wire(Protocol):
    """A warden's standard streams.

    Attributes:
        reader: what it writes to stdout; ends when the warden does.
    """

    reader: asyncio.StreamReader

    def write(self, data: bytes) -> None:
        """Sends to its stdin, in order, without waiting. What it no longer reads is lost."""
        ...

    async def said(self) -> str:
        """Its last words: what is known of why it ended."""
        ...

    async def close(self) -> None:
        """Ends the warden, and the place it runs in with everything there. Called once; `reader` ends."""
        ...


class ProcessWire:
    """A warden that is a child of ours, or that a child of ours becomes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        self.reader, self._process = process.stdout, process

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    async def said(self) -> str:
        assert self._process.stderr is not None
        return (await self._process.stderr.read(4000)).decode("utf-8", "replace").strip()

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the warden ends, and the namespace with it
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()


class PumpedWire:
    """A warden at the far end of a service, whose client sends with a coroutine and hands over what comes.

    Args:
        send: sends some bytes.
        end: ends the place the warden runs in.
        text: the service carries text only. Then frames are lines of Base64, those from the warden marked with "<" so
            that an echo of ours is no answer (the warden is started with `text`, too).
    """

    def __init__(
        self, send: Callable[[bytes], Awaitable[object]], end: Callable[[], Awaitable[object]], *, text: bool = False
    ) -> None:
        self.reader = asyncio.StreamReader()
        self._send, self._end, self._text = send, end, text
        self._last, self._line, self._over = "", bytearray(), False
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._pump())]

    def write(self, data: bytes) -> None:
        for start in range(0, 0 if self._over else len(data), _PIECE):
            piece = data[start : start + _PIECE]
            self._outgoing.put_nowait(b">" + base64.b64encode(piece) + b"\n" if self._text else piece)

    def feed(self, data: bytes | str) -> None:
        """Takes a piece of the warden's stdout."""
        if self._over:
            return
        data = data.encode() if isinstance(data, str) else data
        if not self._text:
            self.reader.feed_data(data)
            return
        *lines, rest = (self._line + data).split(b"\n")
        self._line = bytearray(rest)
        for line in lines:
            if line.startswith(b"<"):
                try:
                    self.reader.feed_data(base64.b64decode(line[1:].strip(), validate=True))
                except binascii.Error:
                    self.over(f"a line that is not Base64: {bytes(line[:80])!r}")

    def feed_error(self, data: bytes | str) -> None:
        """Takes a piece of its stderr."""
        self._last = (self._last + (data if isinstance(data, str) else data.decode("utf-8", "replace")))[-4000:]

    def over(self, reason: str = "") -> None:
        """The warden is gone, and why."""
        if not self._over:
            self._over = True
            self._last = f"{self._last.strip()}\n{reason}".strip()
            self.reader.feed_eof()

    def follow(self, pieces: AsyncIterable[bytes | str], *, errors: bool = False) -> None:
        """Feeds from a stream of the client's until it ends."""
        self._tasks.append(asyncio.create_task(self._follow(pieces, self.feed_error if errors else self.feed, errors)))

    def until(self, end: Awaitable[object]) -> None:
        """It is over when this is."""
        self._tasks.append(asyncio.create_task(self._wait(end)))

    async def said(self) -> str:
        return self._last

    async def close(self) -> None:
        self.over("closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end()

    async def _pump(self) -> None:
        try:
            while True:
                await self._send(await self._outgoing.get())
        except Exception as error:  # noqa: BLE001 - whatever a service's client raises, the sandbox cannot be reached
            self.over(f"{type(error).__name__}: {error}")

    async def _follow(
        self, pieces: AsyncIterable[bytes | str], take: Callable[[bytes | str], None], errors: bool
    ) -> None:
        reason = ""
        try:
            async for piece in pieces:
                take(piece)
        except Exception as error:  # noqa: BLE001 - as above
            reason = f"{type(error).__name__}: {error}"
        if not errors:
            self.over(reason)

    async def _wait(self, end: Awaitable[object]) -> None:
        reason = ""
        try:
            await end
        except Exception as error:  # noqa: BLE001 - as above
            reason = f"{type(error).__name__}: {error}"
        self.over(reason)
