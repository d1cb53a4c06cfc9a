"""Stands between a trainer and a program it started, so that nothing of the program outlives the trainer.

    python -I -S watch.py GRACE PROGRAM ARGUMENT …

Runs the program in a session of its own. When standard input ends (the trainer closed its end, or died in whatever way:
the system closes it then), or this process gets SIGTERM, or has another parent than before (someone else may still hold
the pipe), the program gets SIGTERM, GRACE seconds to end, and SIGKILL with everything it has started, at any depth: on
Linux, whose parent is gone becomes a child of this process (subreaper), so nothing can get out of reach. Were this
process itself killed, the program goes with it (parent-death signal); that signal alone reaches no grandchildren.

Exits with the program's code, 128 + n if signal n ended it. Standard library only: it starts in 20 ms.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

LOOK_S = 0.2
SWEEP_S = 20.0  # a GPU's memory takes its time to be given back
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> int:
    grace, command = float(sys.argv[1]), sys.argv[2:]
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    program = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    try:
        while program.poll() is None and not left(parent):
            pass
    finally:
        code = end(program, grace)
    return code if code >= 0 else 128 - code


def prctl(option: int, value: int) -> None:
    """Linux's; elsewhere the group is all there is to kill."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def left(parent: int) -> bool:
    """Waits a moment; whether the trainer is gone or wants an end."""
    readable, _, _ = select.select([0], [], [], LOOK_S)
    return bool(readable) or os.getppid() != parent


def end(program: "subprocess.Popen[bytes]", grace: float) -> int:
    """Ends the program and whatever it left; returns its code."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if program.poll() is None:
        program.terminate()
        try:
            program.wait(grace)
        except subprocess.TimeoutExpired:
            program.kill()
    code = program.wait()
    deadline = time.monotonic() + SWEEP_S
    while time.monotonic() < deadline:
        try:
            os.killpg(program.pid, signal.SIGKILL)
        except OSError:  # nobody is left of the group
            if not children():
                break
        for child in children():
            os.kill(child, signal.SIGKILL)
        reap()
        time.sleep(0.02)
    return code


def reap() -> None:
    """Takes leave of every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def children() -> list[int]:
    """Children of this process, ended ones that were not reaped included; none where there is no /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
