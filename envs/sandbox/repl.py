"""A Python that keeps its variables between calls, in a sandbox."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

from envs.sandbox.base import Process, Sandbox

_WORKER = Path(__file__).with_name("repl_worker.py")
_INTERRUPT_SECONDS = 1.0  # for Python to show a KeyboardInterrupt, before its process is ended


class PythonREPL:
    """One Python process of a sandbox, started with the first call.

        repl = PythonREPL(sandbox)
        await repl.run("x = 20")
        await repl.run("x + 22")        # "42"

    Everything that a call prints (programs it starts included), the value of a last expression and tracebacks are
    its output. State is lost only when the process ends: by its own doing, a limit of the sandbox, or because it would
    not be interrupted; the next output says so.

    Args:
        sandbox: where it runs.
        python: the command that starts Python there.
    """

    def __init__(self, sandbox: Sandbox, python: str = "python3") -> None:
        self._sandbox, self._python = sandbox, python
        self._process: Process | None = None
        self._number = 0
        self._rest = b""
        self._lock = asyncio.Lock()

    async def run(self, code: str, *, wall: float | None = None) -> str:
        """Runs code in the state that earlier calls left, and returns its output.

        Args:
            code: Python source.
            wall: the most seconds; by default the sandbox's `limits.wall`. Then the code is interrupted, as by Ctrl-C.

        Raises:
            InfrastructureError: the sandbox failed.
        """
        seconds = self._sandbox.limits.wall if wall is None else wall
        async with self._lock:
            if self._process is None:
                try:
                    self._process = await self._start()
                except OSError as error:  # no process or no room on the disk left, or the deadline is over
                    return f"[Python cannot be started: {error.strerror or error}]"
            process = self._process
            self._number += 1
            request = {"number": self._number, "code": code, "most": self._sandbox.limits.output}
            await process.send(json.dumps(request).encode() + b"\n")
            try:
                return await self._answer(process, seconds)
            except asyncio.CancelledError:
                await self._stop(process)  # the caller gave up; what is still running must not answer the next call
                raise

    async def close(self) -> None:
        """Ends the process; the next call would start a new one."""
        if self._process is not None:
            await self._stop(self._process)

    async def _start(self) -> Process:
        return await self._sandbox.spawn([self._python, "-u", "-c", _WORKER.read_text("utf-8")])

    async def _answer(self, process: Process, seconds: float) -> str:
        notice = ""
        for patience in (seconds, _INTERRUPT_SECONDS):
            try:
                async with asyncio.timeout(patience):
                    answer = await self._receive(process)
            except TimeoutError:
                notice = f"\n[interrupted after {seconds:g} s]"
                await process.signal(signal.SIGINT)
                continue
            if answer is None:
                self._process, self._rest = None, b""
                code = await process.wait()
                return f"[Python ended ({code}); its variables are gone]{notice}"
            return answer + notice
        await self._stop(process)
        return f"[did not stop within {seconds:g} s; Python was ended and its variables are gone]"

    async def _receive(self, process: Process) -> str | None:
        """The output of this call, or None if the process ended. Anything that is no answer is passed over: the code
        shares its process with the worker and can write what it likes, to the confusion of nobody but itself."""
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                try:
                    answer = json.loads(line)
                    if answer["number"] == self._number:
                        return str(answer["output"])
                except (ValueError, TypeError, KeyError):
                    pass
                continue
            piece = await process.receive()
            if not piece:
                return None
            self._rest = (self._rest + piece)[-(1 << 24) :]

    async def _stop(self, process: Process) -> None:
        self._process, self._rest = None, b""
        await process.signal(signal.SIGKILL)
