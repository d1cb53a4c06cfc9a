"""The one process that knows reasoning-gym, from outside."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from envs import InfrastructureError

_ENVIRON = {
    "PYTHONHASHSEED": "0",  # entries that come out of sets
    "OPENBLAS_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
}


class Gym:
    """Starts with the first question and is shared by all who ask, one after the other."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    def ask(self, op: str, **job: Any) -> dict[str, Any]:
        """The reply to a question; `{"unreadable": …}` if it cost the process its life.

        Raises:
            InfrastructureError: if the process was, or is, gone for another reason.
        """
        with self._lock:
            process = self._process = self._process or self._start()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps({"op": op, **job}).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = b""
            if line:
                reply: dict[str, Any] = json.loads(line)
                return reply
            self._process = None
            code = process.wait()
            process.stdout.close()
        if code == -signal.SIGPROF:
            return {"unreadable": "took too long"}
        raise InfrastructureError(f"the process that asks reasoning-gym ended with {code}")

    def close(self) -> None:
        """Ends the process; the next question would start a new one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> "subprocess.Popen[bytes]":
        script = Path(__file__).with_name("worker.py")
        return subprocess.Popen(
            [sys.executable, "-P", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRON},
        )


GYM = Gym()
