"""One SGLang server: started here, or found at a URL. Both are waited for and watched in the same way."""

import asyncio
import datetime
import math
import os
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import aiohttp

from envs.errors import ConfigError
from rl.inference.engine import EngineError
from rl.inference.sglang import log
from rl.inference.sglang.command import Command
from rl.inference.sglang.ports import check_free

Report = Callable[[str], None]
"""Is told, in a sentence, how things stand."""

PORT_S = 20.0
"""Until a port is free again."""

WATCH = Path(__file__).with_name("watch.py")

WATCH_S = 30.0
"""What `watch.py` may take, beyond the grace it gives."""

READY, ALIVE = "/health", "/server_info"
"""What a server answers once it can sample, and what it answers always: /health waits for a token, so a server that is
paused fails it, after 20 s. /server_info asks the scheduler, paused or not; a scheduler that hangs does not answer."""


class Patience(NamedTuple):
    """How long to wait for what, in seconds.

    Attributes:
        ready: from start until the first token could be drawn.
        answer: a server that has not answered for so long hangs. It does not answer while it loads weights or reads a
            long prompt, so this has to be longer than those.
        every: between two looks.
        grace: a server that is told to end has this long to do so.
    """

    ready: float = 600.0
    answer: float = 120.0
    every: float = 2.0
    grace: float = 5.0


class Server(Protocol):
    """What a fleet keeps going."""

    @property
    def url(self) -> str:
        """Where it answers; stays the same when it is started again."""
        ...

    @property
    def name(self) -> str:
        """What reports and errors call it."""
        ...

    @property
    def returncode(self) -> int | None:
        """With which code its process ended; None while it runs, and for a server that is not ours."""
        ...

    async def start(self, report: Report) -> None:
        """Returns once it answers. What is left of an earlier start is ended first.

        Raises:
            ConfigError: when its port is taken.
            EngineError: when it ends, or does not answer in time.
        """
        ...

    async def lost(self) -> str:
        """Returns once it no longer works, with the reason: it ended, or it hangs."""
        ...

    async def stop(self) -> None:
        """Returns once nothing of it is left. No error when it does not run."""
        ...


class Launched:
    """A server that is a process of ours.

    Between it and us is `watch.py`, which ends it and all it started when we go, however we go.

    Args:
        name: what reports and errors call it.
        url: where it will answer.
        command: how it is started.
        path: its log file, to which every start adds.
        patience: how long to wait.
        ready: what it answers with 200 once it is of use.
        alive: what it answers as long as it works.
    """

    def __init__(
        self,
        name: str,
        url: str,
        command: Command,
        path: Path,
        patience: Patience = Patience(),
        *,
        ready: str = READY,
        alive: str = ALIVE,
    ) -> None:
        self.name, self.url = name, url
        self._command, self._path, self._patience = command, path, patience
        self._ready, self._alive = ready, alive
        self._process: asyncio.subprocess.Process | None = None
        self._starts, self._from = 0, 0

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.returncode

    @property
    def pid(self) -> int | None:
        """Of the process that watches it, whose only child it is."""
        return None if self._process is None else self._process.pid

    async def start(self, report: Report) -> None:
        await self.stop()
        host, port = _address(self.url)
        await _free(host, port, within=PORT_S if self._starts else 0.0)
        await self._launch()
        began, said = time.monotonic(), ""
        async with aiohttp.ClientSession() as session:
            while not await self._unless_ended(_answers(session, self.url + self._ready, began + self._patience.ready)):
                if self.returncode is not None:
                    raise EngineError(f"{self.name} {self._explained()}")
                waited = time.monotonic() - began
                line = log.last_line(log.read(self._path, self._from))
                if waited >= self._patience.ready:
                    await self.stop()
                    raise EngineError(
                        f"{self.name} did not answer {self._ready} within {self._patience.ready:g} s; it last said: "
                        f"{line or 'nothing'} (all of it: {self._path})"
                    )
                if line != said:
                    said = line
                    report(f"{self.name}, {waited:.0f} s: {line}")
                await asyncio.sleep(min(0.5, self._patience.every))
        report(f"{self.name} is ready after {time.monotonic() - began:.0f} s at {self.url}")

    async def lost(self) -> str:
        assert self._process is not None, "start it first"
        ended = asyncio.ensure_future(self._process.wait())
        silent = asyncio.ensure_future(_silent(self.url + self._alive, self._patience))
        try:
            await asyncio.wait((ended, silent), return_when=asyncio.FIRST_COMPLETED)
            return self._explained() if ended.done() else silent.result()
        finally:
            for task in (ended, silent):
                task.cancel()
            await asyncio.gather(ended, silent, return_exceptions=True)

    async def stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()  # what `watch.py` waits for
        try:
            await asyncio.wait_for(process.wait(), self._patience.grace + WATCH_S)
        except TimeoutError:
            process.kill()  # it was stopped, or something of the server cannot be killed; its program goes with it
            await process.wait()

    async def _unless_ended(self, asking: Coroutine[Any, Any, bool]) -> bool:
        """What comes of it; False as soon as the process ends: somebody else who has its port may never answer."""
        assert self._process is not None
        ended, answered = asyncio.ensure_future(self._process.wait()), asyncio.ensure_future(asking)
        try:
            await asyncio.wait((ended, answered), return_when=asyncio.FIRST_COMPLETED)
            return answered.done() and answered.result()
        finally:
            for task in (ended, answered):
                task.cancel()
            await asyncio.gather(ended, answered, return_exceptions=True)

    async def _launch(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._starts += 1
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with self._path.open("ab") as file:
            file.write(f"--- start {self._starts} of {self.name}, {now}: {' '.join(self._command.argv)}\n".encode())
            file.flush()
            self._from = file.tell()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(WATCH), str(self._patience.grace), *self._command.argv),
                env=self._command.environment(os.environ),
                stdin=asyncio.subprocess.PIPE,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C at a terminal is for us; we end it in order
            )

    def _explained(self) -> str:
        code = self.returncode
        assert code is not None
        text = log.read(self._path, self._from)
        return f"{log.explanation(code, text)}\n  (all of it: {self._path})"


class Attached:
    """A server that somebody else started, and will start again.

    Args:
        name: what reports and errors call it.
        url: where it answers.
        patience: how long to wait.
    """

    returncode: int | None = None

    def __init__(self, name: str, url: str, patience: Patience = Patience()) -> None:
        self.name, self.url, self._patience = name, url.rstrip("/"), patience

    async def start(self, report: Report) -> None:
        began, told = time.monotonic(), False
        async with aiohttp.ClientSession() as session:
            # Not READY: a trainer that was killed may have left it paused.
            while not await _answers(session, self.url + ALIVE, began + self._patience.ready):
                if time.monotonic() - began >= self._patience.ready:
                    raise EngineError(
                        f"{self.name} did not answer {ALIVE} within {self._patience.ready:g} s; expected an SGLang "
                        f"server there: start it, or correct the URL"
                    )
                if not told:
                    told = True
                    report(f"waiting for {self.name}")
                await asyncio.sleep(min(0.5, self._patience.every))
        report(f"{self.name} answers")

    async def lost(self) -> str:
        return await _silent(self.url + ALIVE, self._patience, refusals=2)

    async def stop(self) -> None:
        """It is not ours to end."""


async def _answers(session: aiohttp.ClientSession, url: str, until: float) -> bool:
    """Whether the answer is 200, and comes before `until`. Whoever is not there yet, or is cut off, does not answer."""
    try:
        timeout = aiohttp.ClientTimeout(total=max(0.1, until - time.monotonic()))
        async with session.get(url, timeout=timeout) as reply:
            await reply.read()
            return reply.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _silent(url: str, patience: Patience, refusals: float = math.inf) -> str:
    """Returns once a server has gone quiet, with the reason.

    Two looks in a row must fail, each with half the time there is: were our own loop held up for that long, only one
    would, since the answer to the second was there by then.

    Args:
        url: what it answers as long as it works.
        patience: how long to wait.
        refusals: connections that may fail in a row before it counts as gone. Any number for a server whose process we
            see.
    """
    async with aiohttp.ClientSession() as session:
        hung = refused = 0
        while hung < 2 and refused < refusals:
            await asyncio.sleep(patience.every)
            try:
                timeout = aiohttp.ClientTimeout(total=patience.answer / 2)
                async with session.get(url, timeout=timeout) as reply:
                    await reply.read()
                hung = refused = 0
            except TimeoutError:
                hung += 1
            except aiohttp.ClientError:
                refused += 1
    return f"hangs: no answer for {patience.answer:g} s" if hung >= 2 else "is gone: connections fail"


async def _free(host: str, port: int, within: float) -> None:
    """Returns once nobody listens at a port: the system takes a moment to give back what a killed server had."""
    end = time.monotonic() + within
    while True:
        try:
            return check_free(host, port)
        except ConfigError:
            if time.monotonic() >= end:
                raise
        await asyncio.sleep(0.2)


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host.strip("[]"), int(port)
