"""A journal of rollouts on disk that survives being killed at any instant."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from envs.errors import UpswingError
from envs.types import Trajectory


class Journal:
    """An append-only file with one JSON line per rollout: `{"keys": {…}, "trajectory": {…}}`.

    Each line is handed to the operating system in a single write: killing the process loses at most the line being
    written, which opening the journal again cuts off. (A power failure may lose lines that are not on disk yet.)

        with Journal(run / "rollouts.jsonl") as journal:
            await evaluate(environment, client, done=[t for _, t in journal.read()], on_trajectory=journal.append)

    Args:
        path: the file; made, with its folder, if it does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        os.ftruncate(self._file, whole_lines(self._file))

    def append(self, trajectory: Trajectory, **keys: Any) -> None:
        """Adds a rollout.

        Args:
            trajectory: what happened.
            keys: what else to find it by (JSON), for example `step=3`.

        Raises:
            OSError: if it does not fit on the disk; the journal is as it was before.
        """
        head = json.dumps(keys, separators=(",", ":"))
        line = f'{{"keys":{head},"trajectory":{trajectory.to_json()}}}\n'.encode()
        size = os.fstat(self._file).st_size
        written = os.write(self._file, line)
        if written != len(line):
            os.ftruncate(self._file, size)
            raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written; is the disk full?")

    def read(self) -> Iterator[tuple[dict[str, Any], Trajectory]]:
        """Every rollout so far with its keys; see the function `read`."""
        return read(self.path)

    def close(self) -> None:
        """Closes the file. Closing twice is fine."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: str | Path) -> Iterator[tuple[dict[str, Any], Trajectory]]:
    """The rollouts of a journal with their keys, in the order they were written.

    A torn last line, left by a process that was killed while writing it, is passed over.

    Raises:
        UpswingError: naming the line, if the file is damaged anywhere else.
        FileNotFoundError: if there is no such file.
    """
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                entry = json.loads(line)
                yield entry["keys"], Trajectory.from_dict(entry["trajectory"])
            except (ValueError, KeyError, TypeError) as error:
                raise UpswingError(
                    f"{path}:{number} is damaged ({type(error).__name__}: {error}); "
                    f"remove that line to go on without this rollout: {line[:80]!r}"
                ) from None


def whole_lines(file: int, block: int = 1 << 16) -> int:
    """The length of the file up to and with its last line end."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - block)
        at = os.pread(file, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
