"""A user id of its own for every sandbox, so that limits per user count for it alone and leftovers can be found."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from envs.errors import InfrastructureError

FIRST = 2_000_000_000  # far above what accounts and container runtimes hand out
COUNT = 4096


def state_folder() -> Path:
    """A folder of this user's own for locks and mount points.

    Raises:
        InfrastructureError: if somebody else's folder is in its place.
    """
    base = Path("/run") if os.access("/run", os.W_OK) else Path("/tmp")
    folder = base / f"upswing-sandboxes-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o755)
    found = folder.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise InfrastructureError(f"{folder} belongs to user {found.st_uid} or others can write it; remove it")
    (folder / "mount").mkdir(exist_ok=True)
    (folder / "slots").mkdir(exist_ok=True)
    return folder


@dataclass
class Slot:
    """One user id, held by this process until `release`, or until it ends."""

    uid: int
    lock: int

    def release(self) -> None:
        """Gives it back, clean: the sandbox has ended."""
        if self.lock >= 0:
            os.ftruncate(self.lock, 0)
            os.close(self.lock)
            self.lock = -1


def acquire() -> Slot:
    """The first free slot; what a process that crashed left running in it is ended first.

    Raises:
        InfrastructureError: all are taken.
    """
    folder = state_folder() / "slots"
    for number in range(COUNT):
        slot = _lock(folder / str(number), FIRST + number)
        if slot is not None:
            if os.fstat(slot.lock).st_size:
                end_processes_of({slot.uid})
            os.write(slot.lock, b"in use")
            return slot
    raise InfrastructureError(
        f"all {COUNT} sandbox slots of this machine are taken; close some, or lower the pool's limit"
    )


def reap() -> int:
    """Ends what is left in slots that nobody holds; the number of processes."""
    left = {}
    for file in (state_folder() / "slots").iterdir():
        slot = _lock(file, FIRST + int(file.name)) if file.stat().st_size else None
        if slot is not None:
            left[slot.uid] = slot
    ended = end_processes_of(set(left)) if left else 0
    for slot in left.values():
        slot.release()
    return ended


def end_processes_of(uids: set[int]) -> int:
    """Kills every process of these users until there is none."""
    ended: set[int] = set()
    while True:
        found = [pid for pid, uid in _processes() if uid in uids]
        if not found:
            return len(ended)
        ended.update(found)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _processes() -> list[tuple[int, int]]:
    """Process and real user id of everything that runs; zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = (entry / "status").read_text()
                if "\nState:\tZ" not in status:
                    found.append((int(entry.name), int(status.partition("\nUid:\t")[2].split()[0])))
    return found


def _lock(file: Path, uid: int) -> Slot | None:
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return Slot(uid, fd)
