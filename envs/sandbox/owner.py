"""Who started a sandbox: what is told to services that outlive us, so that leftovers can be found."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

LABEL = "upswing-owner"
MARK = {"upswing": "sandbox"}  # for services that find things by exact labels only


def owner() -> str:
    """This process: a mark of its machine, its id and when it started; a value that any service takes as a label."""
    return f"{_machine()}-{os.getpid()}-{_began(os.getpid())}"


def crashed(name: str | None) -> bool:
    """Whether an owner ran on this machine and runs no more. Of other machines' owners nothing is known here."""
    machine, _, process = (name or "").partition("-")
    pid, _, began = process.partition("-")
    return machine == _machine() and pid.isdigit() and _began(int(pid)) != began


def _machine() -> str:
    """Differs between machines, between containers (they have names of their own), and from boot to boot."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    name = platform.node() + (boot.read_text() if boot.exists() else "")
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def _began(pid: int) -> str:
    """When a process started, in the kernel's ticks; "0" where the kernel does not say, "" if it is gone."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass  # it lives, as somebody else
        return "0"
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except OSError:
        return ""
