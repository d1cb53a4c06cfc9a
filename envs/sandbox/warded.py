"""The host's side of a sandbox whose first process is our warden (`warden.py`)."""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.errors import InfrastructureError
from envs.sandbox.base import Command, Limits, Result
from envs.sandbox.files import download_tree, upload_tree
from envs.sandbox.wire import ProcessWire, Wire

WARDEN = Path(__file__).with_name("warden.py")

_GRACE_SECONDS = 30.0  # how much longer than the command may take we wait for the warden to say so


class WardedSandbox:
    """A sandbox behind a warden. Made by `start` or `over`."""

    def __init__(self, limits: Limits, wire: Wire, what: str, release: Callable[[], None]) -> None:
        self.limits = limits
        self._wire, self._what, self._release = wire, what, release
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}
        self._spawned: dict[int, WardedProcess] = {}
        self._dead: InfrastructureError | None = None
        self._closed = False
        self._reader = asyncio.create_task(self._read_frames())

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        limits: Limits,
        *,
        what: str,
        release: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> WardedSandbox:
        """Runs `argv`, which becomes a warden, and waits until it answers.

        Args:
            argv: the command.
            limits: what the sandbox may use.
            what: the kind of sandbox, for errors.
            release: called once, when the sandbox has ended.
            options: for `asyncio.create_subprocess_exec`.

        Raises:
            InfrastructureError: if it does not start; the message has what it wrote to stderr.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=2**20,
                start_new_session=True,  # Ctrl-C is ours to handle
                **options,
            )
        except OSError as error:
            release()
            raise InfrastructureError(f"the {what} sandbox did not start: {error}") from error
        return await cls.over(ProcessWire(process), limits, what=what, release=release)

    @classmethod
    async def over(
        cls, wire: Wire, limits: Limits, *, what: str, release: Callable[[], None] = lambda: None
    ) -> WardedSandbox:
        """The sandbox of the warden at the other end of a wire, once it answers.

        Raises:
            InfrastructureError: if it does not; the wire is closed then.
        """
        sandbox = cls(limits, wire, what, release)
        try:
            await sandbox._ask({"do": "hello"})
        except BaseException:
            await sandbox.close()
            raise
        return sandbox

    async def exec(
        self,
        command: Command,
        *,
        stdin: bytes = b"",
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        wall: float | None = None,
    ) -> Result:
        """See `Sandbox.exec`."""
        seconds = self.limits.wall if wall is None else wall
        request = {"do": "exec", "wall": seconds, "output": self.limits.output, **_command(command, cwd, env)}
        head, body = await self._ask(request, stdin, seconds)
        if "errno" in head:  # it could not even start: no such program
            return Result(None, b"", str(head["error"]).encode())
        (size,) = struct.unpack(">I", body[:4])
        return Result(
            head["code"],
            body[4 : 4 + size],
            body[4 + size :],
            head.get("limit", ""),
            head.get("dropped", 0),
            head.get("seconds", 0.0),
        )

    async def spawn(self, command: Command, *, cwd: str = "", env: Mapping[str, str] | None = None) -> WardedProcess:
        """See `Sandbox.spawn`."""
        number = next(self._numbers)
        process = self._spawned[number] = WardedProcess(self, number)
        head, _ = await self._ask({"do": "spawn", **_command(command, cwd, env)}, number=number)
        _check(head)
        return process

    async def read(self, path: str) -> bytes:
        """See `Sandbox.read`."""
        head, data = await self._ask({"do": "read", "path": path})
        _check(head, path)
        return data

    async def write(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """See `Sandbox.write`."""
        head, _ = await self._ask({"do": "write", "path": path, "executable": executable}, data)
        _check(head, path)

    async def upload(self, source: Path, path: str) -> None:
        """See `Sandbox.upload`."""
        await upload_tree(self.write, source, path)

    async def download(self, path: str, target: Path) -> None:
        """See `Sandbox.download`."""
        await download_tree(self, path, target)

    async def kill(self) -> None:
        """See `Sandbox.kill`."""
        await self._ask({"do": "kill"})

    async def close(self) -> None:
        """See `Sandbox.close`."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._wire.close()
        finally:
            self._release()
            await self._reader

    async def _ask(
        self, request: dict[str, Any], payload: bytes = b"", seconds: float = 0.0, number: int | None = None
    ) -> tuple[dict[str, Any], bytes]:
        if self._closed:
            raise InfrastructureError(f"the {self._what} sandbox is closed")
        number = next(self._numbers) if number is None else number
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"id": number, **request}, payload)
            async with asyncio.timeout(seconds + _GRACE_SECONDS):
                return await answer
        except TimeoutError:
            raise InfrastructureError(
                f"the {self._what} sandbox did not answer '{request['do']}' within {seconds + _GRACE_SECONDS:g} s"
            ) from None
        finally:
            self._waiting.pop(number, None)

    def _send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        if self._dead is not None:
            raise self._dead
        head = json.dumps(header).encode()
        self._wire.write(struct.pack(">II", len(head), len(payload)) + head + payload)

    async def _read_frames(self) -> None:
        stdout = self._wire.reader
        try:
            while True:
                head_size, size = struct.unpack(">II", await stdout.readexactly(8))
                head = json.loads(await stdout.readexactly(head_size))
                body = await stdout.readexactly(size) if size else b""
                self._deliver(head, body)
        except asyncio.IncompleteReadError:
            await self._end()

    def _deliver(self, head: dict[str, Any], body: bytes) -> None:
        if "event" in head:
            spawned = self._spawned.get(head["id"])
            if spawned is not None:
                spawned._take(head, body)
        else:
            answer = self._waiting.get(head["id"])
            if answer is not None and not answer.done():
                answer.set_result((head, body))

    async def _end(self) -> None:
        """Tells everybody who waits that there is nobody any more."""
        said = await self._wire.said()
        self._dead = InfrastructureError(f"the {self._what} sandbox ended by itself" + (f": {said}" if said else ""))
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._dead)
        for spawned in self._spawned.values():
            spawned._take({"event": "exit", "code": -9}, b"")


class WardedProcess:
    """A process that goes on; see `Process`."""

    def __init__(self, sandbox: WardedSandbox, number: int) -> None:
        self._sandbox, self._number = sandbox, number
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self._code = asyncio.get_running_loop().create_future()

    async def send(self, data: bytes) -> None:
        self._sandbox._send({"do": "send", "id": self._number}, data)

    async def receive(self) -> bytes:
        piece = await self._pieces.get()
        if piece:
            self._sandbox._send({"do": "ack", "id": self._number, "bytes": len(piece)})
        else:
            self._pieces.put_nowait(b"")  # the end stays the end
        return piece

    async def signal(self, number: int) -> None:
        await self._sandbox._ask({"do": "signal", "of": self._number, "number": number})

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    def _take(self, head: dict[str, Any], body: bytes) -> None:
        if head["event"] == "output":
            self._pieces.put_nowait(body)
        elif not self._code.done():
            self._code.set_result(head["code"])
            self._pieces.put_nowait(b"")


def warden_limits(limits: Limits, **options: object) -> str:
    """What the warden is told, as its argument: the limits it keeps, and how it runs.

    Args:
        limits: of the sandbox.
        options: `text` (frames are lines of Base64), `folder` (to make, and work in), `user` (a number: who its
            commands run as; needs root).
    """
    names = ("cpu", "memory", "processes", "disk", "deadline")
    return json.dumps({name: getattr(limits, name) for name in names} | options)


def _command(command: Command, cwd: str, env: Mapping[str, str] | None) -> dict[str, Any]:
    return {"command": command if isinstance(command, str) else list(command), "cwd": cwd, "env": dict(env or {})}


def _check(head: Mapping[str, Any], path: str = "") -> None:
    if "errno" in head:
        raise OSError(head["errno"], head["error"], path or None)
