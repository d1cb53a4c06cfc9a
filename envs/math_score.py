"""Mathematical answers: are two expressions the same number, set, interval, equation …? By `math-verify`."""

import asyncio
import atexit
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from envs.errors import ConfigError, InfrastructureError
from envs.parsers import Parser

_START_SECONDS = 120.0
_GRACE = 10.0


def math_equal(
    *, name: str = "correct", parser: Parser[str] | None = None, seconds: float = 5.0, processes: int | None = None
) -> Callable[..., Awaitable[float]]:
    r"""A reward function: 1 if the completion's answer equals the task's, mathematically.

    `math-verify` finds the answer (the last `\boxed{…}`, formula or number) and compares, in processes of its own. A
    comparison that takes too long or too much memory is the model's doing and scores 0; a gold answer that cannot be
    read is an error of the environment.

    Args:
        name: of the reward function.
        parser: what to look at instead of the whole completion, for example `xml_tag("answer")`.
        seconds: CPU time for one comparison.
        processes: how many compare at once; by default one per core, at most 8. They start when first used, and all
            functions of this kind share them.

    Raises:
        ConfigError: if math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(
            "math_equal needs the package math-verify, which is not installed; pip install 'upswing[math]'"
        )

    async def reward(completion: str, answer: object) -> float:
        found = completion if parser is None else parser(completion)
        if not found:
            return 0.0
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(_pool(processes), _compare, str(answer), found, seconds)
        if "no_gold" in result:
            raise ValueError(f"math-verify finds no mathematics in the task's answer {answer!r}")
        return float(result.get("equal", False))

    reward.__name__ = name
    return reward


_LOCK = threading.Lock()
_POOLS: dict[int, ThreadPoolExecutor] = {}
_WORKERS: dict[int, "_Worker"] = {}  # by thread


def _pool(processes: int | None) -> ThreadPoolExecutor:
    """Threads that each keep a process. (Forking from here would copy whatever JAX is doing.)"""
    count = processes or min(8, os.cpu_count() or 1)
    with _LOCK:
        if count not in _POOLS:
            _POOLS[count] = ThreadPoolExecutor(count, thread_name_prefix="math")
        return _POOLS[count]


def _compare(gold: str, answer: str, seconds: float) -> dict[str, bool]:
    thread = threading.get_ident()
    worker = _WORKERS.get(thread)
    if worker is None:
        worker = _WORKERS[thread] = _Worker()
    line = json.dumps({"gold": gold, "answer": answer, "seconds": seconds})
    try:
        # The worker's clock rings between two instructions of Python; one that takes for ever is ended from here.
        reply = worker.ask(line, seconds + _GRACE)
    except BaseException:
        del _WORKERS[thread]
        raise
    if reply is None:
        del _WORKERS[thread]
        return {"late": True}
    result: dict[str, bool] = json.loads(reply)
    return result


class _Worker:
    """A process that compares.

    Raises:
        InfrastructureError: if it does not start.
    """

    def __init__(self) -> None:
        script = Path(__file__).with_name("math_worker.py")
        environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
        )
        if not self._line(_START_SECONDS):
            self.close()
            raise InfrastructureError(f"a process that compares mathematics ended with {self._process.returncode}")

    def ask(self, line: str, seconds: float) -> bytes | None:
        """The answer to a line; None, and the end of the process, if there is none in time.

        Raises:
            InfrastructureError: if the process was, or is, gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
            reply = self._line(seconds)
        except BrokenPipeError:
            reply = b""
        if not reply:
            self.close()
        if reply == b"":
            raise InfrastructureError(f"a process that compares mathematics ended with {self._process.returncode}")
        return reply

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what was not read any more
                pipe.close()

    def _line(self, seconds: float) -> bytes | None:
        """The next line; empty if the process has ended, None if there is none in time."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else None


@atexit.register
def _end() -> None:
    for worker in _WORKERS.values():
        worker.close()
