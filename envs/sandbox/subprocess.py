"""Commands in a plain folder of this machine: limits, no isolation. For code you would run yourself."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from envs.errors import ConfigError
from envs.sandbox.base import Limits
from envs.sandbox.warded import WARDEN, WardedSandbox, warden_limits


@dataclass(frozen=True)
class TrustedSubprocess:
    """Runs commands as you, with your files and your network, in a new folder that is removed at the end.

    It keeps the limits of time, CPU, memory per process, file size and output, and ends what it started. It does not
    keep `disk`, `files`, `processes` or `network`, and it protects nothing: what a model writes can do what you can.

    Attributes:
        model_code: says that you know this and run code written by a model all the same.
    """

    model_code: bool = False

    async def start(self, limits: Limits) -> WardedSandbox:
        """A new folder with a warden in it.

        Raises:
            ConfigError: unless `model_code` was given.
            InfrastructureError: it did not start.
        """
        if not self.model_code:
            raise ConfigError(
                "the subprocess backend does not isolate: what a model writes could read and delete your files. "
                "Use Bubblewrap(), or TrustedSubprocess(model_code=True) if you trust what will run"
            )
        folder = tempfile.mkdtemp(prefix="upswing-")
        for name in ("work", "tmp"):
            Path(folder, name).mkdir()
        keep = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        argv = [sys.executable, "-I", "-S", str(WARDEN), warden_limits(limits)]
        return await WardedSandbox.start(
            argv,
            limits,
            what="subprocess",
            release=lambda: shutil.rmtree(folder, ignore_errors=True),
            cwd=f"{folder}/work",
            env={**keep, "HOME": f"{folder}/work", "TMPDIR": f"{folder}/tmp"},
        )

    async def reap(self) -> int:
        """Nothing: a warden ends with the process it answers to, and its commands with it."""
        return 0
