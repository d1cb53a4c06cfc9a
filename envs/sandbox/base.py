"""A place where code that a model wrote may run: one protocol for every backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Command = str | Sequence[str]
"""A text is run by a shell, a sequence is a program and its arguments."""

Limit = Literal["", "wall", "memory", "processes", "deadline"]


@dataclass(frozen=True)
class Limits:
    """What a sandbox may use.

    Attributes:
        wall: seconds a command may take.
        cpu: CPU seconds that one process may take.
        memory: bytes that all its processes may have together.
        processes: how many there may be at once.
        disk: bytes of all files; what is in memory and what is on disk counts alike.
        files: how many files and folders there may be.
        output: bytes that are kept of what a command writes, to stdout and stderr each; the rest is thrown away.
        network: "none", or "host": whatever the machine reaches.
        deadline: seconds the sandbox lives.
    """

    wall: float = 10.0
    cpu: float = 10.0
    memory: int = 2**30
    processes: int = 64
    disk: int = 2**28
    files: int = 20_000
    output: int = 2**16
    network: Literal["none", "host"] = "none"
    deadline: float = 3600.0


@dataclass(frozen=True)
class Result:
    """What came of a command. Whatever the command did is the model's doing, limits it ran into included.

    Attributes:
        code: its exit code; -9 if signal 9 ended it; None if it could not start.
        stdout: what it wrote, at most `limits.output` bytes.
        stderr: the same.
        limit: which limit ended it, if one did.
        dropped: bytes of output that were thrown away.
        seconds: how long it took.
    """

    code: int | None
    stdout: bytes
    stderr: bytes
    limit: Limit = ""
    dropped: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with exit code 0."""
        return self.code == 0 and not self.limit

    def text(self) -> str:
        """All of it as a model reads it: output, errors, and how it ended if not well."""
        parts = [self.stdout.decode("utf-8", "replace"), self.stderr.decode("utf-8", "replace")]
        if self.dropped:
            parts.append(f"[{self.dropped} more bytes of output were thrown away]")
        if self.limit:
            parts.append(f"[stopped after {self.seconds:.1f} s: it ran into the sandbox's limit '{self.limit}']")
        elif self.code:
            parts.append(f"[exit code {self.code}]" if self.code > 0 else f"[ended by signal {-self.code}]")
        return "\n".join(part.rstrip("\n") for part in parts if part)


class Process(Protocol):
    """A process that was started and goes on."""

    async def send(self, data: bytes) -> None:
        """Writes to its stdin. What it no longer reads is lost."""
        ...

    async def receive(self) -> bytes:
        """The next piece of its stdout, b"" when there will be no more."""
        ...

    async def signal(self, number: int) -> None:
        """Sends a signal to it and its process group."""
        ...

    async def wait(self) -> int:
        """Its exit code, when it has ended; negative: the signal that ended it."""
        ...


class Sandbox(Protocol):
    """Where commands run and files live, for one rollout or one grading. The working folder starts empty.

    Every method raises `InfrastructureError` if the sandbox itself fails, and never for what a command does.
    """

    @property
    def limits(self) -> Limits: ...

    async def exec(
        self,
        command: Command,
        *,
        stdin: bytes = b"",
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        wall: float | None = None,
    ) -> Result:
        """Runs a command to its end.

        Args:
            command: what to run.
            stdin: what it can read.
            cwd: where; by default the working folder.
            env: variables besides those of the sandbox.
            wall: another number of seconds than `limits.wall`.
        """
        ...

    async def spawn(self, command: Command, *, cwd: str = "", env: Mapping[str, str] | None = None) -> Process:
        """Starts a process that may live as long as the sandbox. Its stderr goes to its stdout."""
        ...

    async def read(self, path: str) -> bytes:
        """A file's content; a relative path starts at the working folder.

        Raises:
            OSError: no such file, not a regular one …, as `open` says it; the deadline is over (TimeoutError).
        """
        ...

    async def write(self, path: str, data: bytes) -> None:
        """Writes a file, making its folders.

        Raises:
            OSError: the disk is full, the path is a folder …; the deadline is over (TimeoutError).
        """
        ...

    async def upload(self, source: Path, path: str) -> None:
        """Copies a file or folder in. Raises as `write`."""
        ...

    async def download(self, path: str, target: Path) -> None:
        """Copies a file or folder out. Links and special files that point out of the folder are refused with an
        OSError. Raises as `read`."""
        ...

    async def kill(self) -> None:
        """Ends every process that was started in it; the files stay."""
        ...

    async def close(self) -> None:
        """Ends it and everything in it. Closing twice is fine."""
        ...


class Backend(Protocol):
    """Makes sandboxes of one kind."""

    async def start(self, limits: Limits) -> Sandbox:
        """A new, empty sandbox.

        Raises:
            InfrastructureError: it could not be made; trying again may help.
            ConfigError: it cannot be made on this machine, or a limit cannot be kept; the message says what to do.
        """
        ...

    async def reap(self) -> int:
        """Removes what earlier runs that crashed left behind, and returns how many there were."""
        ...
