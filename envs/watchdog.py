"""Who holds up the event loop? One reward function that computes for a second holds up every rollout for a second."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from envs import rollout, rubric, tools

logger = logging.getLogger("envs")


@dataclass(frozen=True, slots=True)
class Blocked:
    """Code that held up the event loop.

    Attributes:
        what: "reward function 'slow'", "tool 'search'" or "harness".
        where: file, line and function that ran when it was caught; of the environment's own, not of Python's.
        seconds: how long it had been holding up the loop by then.
    """

    what: str
    where: str
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.what} held up the event loop, and with it every other rollout, for more than {self.seconds:.2g} s "
            f"({self.where}); make it wait with `await`, or compute in `asyncio.to_thread` or a process"
        )


class Watchdog:
    """Watches the running event loop from a thread, and names the environment's code that blocks it.

        with Watchdog() as watchdog:
            ...
        print(watchdog.blocked)

    Each reward function, tool or harness is reported once. A loop that is held up by anything else (a compiler, the
    engine) is none of an environment's business.

    Args:
        seconds: how long a loop may be held up.
        report: told of each culprit as it is caught, in the watchdog's thread; by default a warning is logged.
    """

    def __init__(self, seconds: float = 0.5, report: Callable[[Blocked], None] | None = None) -> None:
        self._seconds = seconds
        self._report = report or (lambda found: logger.warning("%s", found))
        self._found: dict[str, Blocked] = {}
        self._beat = time.monotonic()
        self._ended = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def blocked(self) -> tuple[Blocked, ...]:
        """Who was caught, in order."""
        return tuple(self._found.values())

    def __enter__(self) -> Watchdog:
        self._loop, self._thread_id = asyncio.get_running_loop(), threading.get_ident()
        self._pulse()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()
        self._thread.join()

    def _pulse(self) -> None:
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(self._seconds / 4, self._pulse)

    def _watch(self) -> None:
        suspect: FrameType | None = None  # kept, so that no other frame can take its place in memory
        since = 0.0
        while not self._ended.wait(self._seconds / 8):
            now = time.monotonic()
            late = now - self._beat > self._seconds / 4
            stack = sys._current_frames().get(self._thread_id) if late else None
            frame, what = _culprit(stack)
            # The very call, all the time: a loop that has much to do is late as well, and nobody's fault.
            if frame is None or frame is not suspect:
                suspect, since = frame, now
            elif now - since >= self._seconds and what not in self._found:
                assert stack is not None
                self._found[what] = Blocked(what, _place(stack), now - since)
                self._report(self._found[what])


def _culprit(stack: FrameType | None) -> tuple[FrameType | None, str]:
    """The call of a reward function, tool or harness that a stack is in, and what to call it."""
    frame = stack
    while frame is not None:
        code = frame.f_code
        if code is rubric.call_function.__code__:
            return frame, f"reward function '{frame.f_locals['function'].name}'"
        if code is tools.call_tool.__code__:
            return frame, f"tool '{frame.f_locals['call']['name']}'"
        if code is rollout.drive.__code__:
            return frame, "harness"
        frame = frame.f_back
    return None, ""


def _place(stack: FrameType) -> str:
    """The innermost line outside this package's and Python's own files."""
    frame: FrameType | None = stack
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    frame = frame or stack
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


_OWN = (str(Path(__file__).parent), str(Path(asyncio.__file__).parents[1]), "<frozen")
