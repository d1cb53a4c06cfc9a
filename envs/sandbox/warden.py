"""The first process inside a sandbox: starts commands, moves files, keeps limits, and answers the host.

It runs on its own, with nothing but the standard library of whatever Python the sandbox has, so that one round trip
serves a request that would otherwise start a program. Frames go both ways over its stdin and stdout: two lengths
(header and payload, 4 bytes each, big endian), a JSON header, the payload. Where only text gets through, they are
lines of Base64.

It trusts nobody in the sandbox. As process 1 of its namespace signals from inside do not reach it; it is not
dumpable, so nobody reads or writes its memory or its pipes; it opens regular files only, and none of /proc.
"""

# `pathlib` takes longer to import than a command to run.
# ruff: noqa: PTH103, PTH116, PTH120, PTH123, PTH208

from __future__ import annotations

import binascii
import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import stat
import struct
import sys
import time

TYPE_CHECKING = False  # `typing` takes longer to import than all of the above
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import IO, Any, NoReturn

WINDOW = 1 << 20  # bytes of a process that goes on which the host has not taken yet
WATCH = 0.1  # seconds between two looks at the memory
DYING = 2.0  # seconds within which what was killed gives its memory back
INIT = os.getpid() == 1


class Child:
    """A process that was asked for."""

    def __init__(
        self, number: int, pid: int, pipes: Sequence[int], stdin: int, kept: int | None, wall: float | None
    ) -> None:
        self.number, self.pid, self.started = number, pid, time.monotonic()
        self.pipes = dict(zip(pipes, ("stdout", "stderr"), strict=False))
        os.set_blocking(stdin, False)
        self.stdin: int | None = stdin
        self.unsent = bytearray()
        self.kept = None if kept is None else {"stdout": bytearray(), "stderr": bytearray()}
        self.most, self.dropped, self.unacked = kept or 0, 0, 0
        self.ends = None if wall is None else self.started + wall
        self.limit, self.closing = "", False


class Warden:
    def __init__(self, source: int, sink: int, limits: Mapping[str, Any]) -> None:
        self.source, self.sink, self.limits = source, sink, limits
        self.children: dict[int, Child] = {}
        self.by_fd: dict[int, Child] = {}
        self.poll, self.incoming = select.poll(), bytearray()
        self.text, self.line = bool(limits.get("text")), b""
        self.deadline = time.monotonic() + limits["deadline"]
        self.over = False
        self.next_watch = 0.0
        self.ooms = out_of_memory(limits)
        wake, wakeup = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self.wake = wake
        self.poll.register(source, select.POLLIN)
        self.poll.register(wake, select.POLLIN)

    # The host's side

    def reply(self, header: Mapping[str, Any], payload: bytes = b"") -> None:
        head = json.dumps(header).encode()
        frame = struct.pack(">II", len(head), len(payload)) + head + payload
        data = memoryview(b"<" + binascii.b2a_base64(frame) if self.text else frame)
        while data:
            data = data[os.write(self.sink, data) :]

    def run(self) -> None:
        while True:
            for fd, _ in self.poll.poll(self.patience()):
                if fd == self.source:
                    if not self.listen():
                        return
                elif fd == self.wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 4096)
                elif fd in self.by_fd:
                    self.move(fd, self.by_fd[fd])
            self.reap()
            self.watch()

    def patience(self) -> int:
        """Milliseconds until something has to be looked at."""
        now = time.monotonic()
        times = [child.ends for child in self.children.values() if child.ends is not None]
        times.append(self.next_watch if self.busy() else self.deadline)
        return max(0, min(60_000, int(1000 * (min(times) - now)) + 1))

    def busy(self) -> bool:
        return bool(self.children) or (INIT and len(processes()) > 1)

    def listen(self) -> bool:
        data = os.read(self.source, 1 << 20)
        self.incoming += self.decoded(data) if self.text else data
        while len(self.incoming) >= 8:
            head, body = struct.unpack(">II", self.incoming[:8])
            if len(self.incoming) < 8 + head + body:
                break
            message = json.loads(self.incoming[8 : 8 + head])
            payload = bytes(self.incoming[8 + head : 8 + head + body])
            del self.incoming[: 8 + head + body]
            try:
                getattr(self, "do_" + message["do"])(message, payload)
            except OSError as error:
                self.reply({"id": message["id"], "errno": error.errno, "error": error.strerror or str(error)})
        return bool(data)

    def decoded(self, data: bytes) -> bytes:
        """What is in the lines that are complete now."""
        *lines, self.line = (self.line + data).split(b"\n")
        return b"".join(binascii.a2b_base64(line[1:]) for line in lines if line.startswith(b">"))

    # What it is asked for

    def do_hello(self, m: Mapping[str, Any], payload: bytes) -> None:
        self.reply({"id": m["id"]})

    def do_exec(self, m: Mapping[str, Any], payload: bytes) -> None:
        if self.over:
            self.reply({"id": m["id"], "code": None, "limit": "deadline"}, struct.pack(">I", 0))
            return
        child = self.start(m, kept=m["output"], wall=m["wall"])
        if child is not None:
            child.closing = True
            self.feed(child, payload)

    def do_spawn(self, m: Mapping[str, Any], payload: bytes) -> None:
        if self.over:
            raise TimeoutError(errno.ETIMEDOUT, "the sandbox's deadline is over")
        if self.start(m, kept=None, wall=None) is not None:
            self.reply({"id": m["id"], "started": True})

    def do_send(self, m: Mapping[str, Any], payload: bytes) -> None:
        child = self.children.get(m["id"])
        if child is not None:
            self.feed(child, payload)

    def do_ack(self, m: Mapping[str, Any], payload: bytes) -> None:
        child = self.children.get(m["id"])
        if child is not None:
            child.unacked -= m["bytes"]
            if child.unacked < WINDOW:
                for fd in child.pipes:
                    self.poll.register(fd, select.POLLIN)

    def do_signal(self, m: Mapping[str, Any], payload: bytes) -> None:
        child = self.children.get(m["of"])
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, m["number"])
        self.reply({"id": m["id"]})

    def do_kill(self, m: Mapping[str, Any], payload: bytes) -> None:
        self.kill_all(keep=())
        self.reply({"id": m["id"]})

    def do_read(self, m: Mapping[str, Any], payload: bytes) -> None:
        with self.open(m["path"], os.O_RDONLY) as file:
            data = file.read(self.limits["disk"])
        self.reply({"id": m["id"]}, data)

    def do_write(self, m: Mapping[str, Any], payload: bytes) -> None:
        folder = os.path.dirname(m["path"])
        if folder:
            os.makedirs(folder, exist_ok=True)
        with self.open(m["path"], os.O_WRONLY | os.O_CREAT) as file:
            os.ftruncate(file.fileno(), 0)
            file.write(payload)
            if m["executable"]:
                os.fchmod(file.fileno(), 0o755)
        self.reply({"id": m["id"]})

    def open(self, path: str, flags: int) -> IO[bytes]:
        """A regular file of the sandbox's own; a pipe that somebody put there would keep us waiting."""
        if self.over:
            raise TimeoutError(errno.ETIMEDOUT, "the sandbox's deadline is over")
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_dev == os.stat("/proc").st_dev:
            os.close(fd)
            raise OSError(errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL, "not a regular file")
        return os.fdopen(fd, "rb" if flags == os.O_RDONLY else "wb", buffering=0)

    # Processes

    def start(self, m: Mapping[str, Any], kept: int | None, wall: float | None) -> Child | None:
        """Forks; None, with an answer sent, if that did not work."""
        command = m["command"]
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        reads, stdin = os.pipe()
        out, writes = os.pipe()
        err, errors = (out, writes) if kept is None else os.pipe()
        failed, failing = os.pipe()
        try:
            pid = self.fork()
        except OSError as error:
            for fd in {reads, stdin, out, writes, err, errors, failed, failing}:
                os.close(fd)
            if kept is None:
                raise
            limit = "memory" if error.errno == errno.ENOMEM else "processes"
            self.reply({"id": m["id"], "code": None, "limit": limit}, struct.pack(">I", 0))
            return None
        if pid == 0:
            become(argv, m["cwd"], m["env"], (reads, writes, errors), failing, self.limits)
        for fd in {reads, writes, errors, failing}:
            os.close(fd)
        problem = os.read(failed, 64)
        os.close(failed)
        pipes = list(dict.fromkeys((out, err)))
        child = Child(m["id"], pid, pipes, stdin, kept, wall)
        if problem:
            os.waitpid(pid, 0)
            for fd in [*pipes, stdin]:
                os.close(fd)
            raise OSError(int(problem), f"{argv[0]}: {os.strerror(int(problem))}")
        self.children[m["id"]] = child
        for fd in pipes:
            self.by_fd[fd] = child
            self.poll.register(fd, select.POLLIN)
        return child

    def fork(self) -> int:
        try:
            return os.fork()
        except BlockingIOError:  # no process left: what nobody asked for has to go
            self.kill_all(keep=self.children.values())
            return os.fork()

    def feed(self, child: Child, data: bytes) -> None:
        if child.stdin is not None:
            child.unsent += data
            self.flush(child)

    def flush(self, child: Child) -> None:
        assert child.stdin is not None
        try:
            while child.unsent:
                del child.unsent[: os.write(child.stdin, child.unsent[:65536])]
        except BlockingIOError:
            self.by_fd[child.stdin] = child
            self.poll.register(child.stdin, select.POLLOUT)
            return
        except BrokenPipeError:
            child.unsent.clear()
            child.closing = True
        if self.by_fd.pop(child.stdin, None) is not None:
            self.poll.unregister(child.stdin)
        if child.closing:
            os.close(child.stdin)
            child.stdin = None

    def move(self, fd: int, child: Child) -> None:
        if fd == child.stdin:
            self.flush(child)
            return
        data = os.read(fd, 65536)
        if not data:
            self.forget(fd, child)
        elif child.kept is not None:
            buffer = child.kept[child.pipes[fd]]
            room = max(0, child.most - len(buffer))
            buffer += data[:room]
            child.dropped += max(0, len(data) - room)
        else:
            self.reply({"id": child.number, "event": "output"}, data)
            child.unacked += len(data)
            if child.unacked >= WINDOW:
                for pipe in child.pipes:
                    self.poll.unregister(pipe)

    def forget(self, fd: int, child: Child) -> None:
        with contextlib.suppress(KeyError):
            self.poll.unregister(fd)
        self.by_fd.pop(fd, None)
        child.pipes.pop(fd, None)
        os.close(fd)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = next((child for child in self.children.values() if child.pid == pid), None)
            if child is not None:
                code = os.waitstatus_to_exitcode(status)
                if code in (-9, 137) and self.ran_out():  # the kernel was faster than our next look
                    self.stop("memory", self.children.values())
                self.finish(child, code)

    def finish(self, child: Child, code: int) -> None:
        """What a process wrote before its end is still in its pipes; what holds them open now does not count."""
        for fd in list(child.pipes):
            os.set_blocking(fd, False)
            with contextlib.suppress(BlockingIOError):
                while fd in child.pipes:
                    self.move(fd, child)
            if fd in child.pipes:
                self.forget(fd, child)
        if child.stdin is not None:
            if self.by_fd.pop(child.stdin, None) is not None:
                self.poll.unregister(child.stdin)
            os.close(child.stdin)
        del self.children[child.number]
        if child.kept is None:
            self.reply({"id": child.number, "event": "exit", "code": code})
            return
        out, err = bytes(child.kept["stdout"]), bytes(child.kept["stderr"])
        seconds = time.monotonic() - child.started
        head = {"id": child.number, "code": code, "limit": child.limit, "dropped": child.dropped, "seconds": seconds}
        self.reply(head, struct.pack(">I", len(out)) + out + err)

    # Limits

    def watch(self) -> None:
        now = time.monotonic()
        if not self.over and now >= self.deadline:
            self.over = True
            self.stop("deadline", self.children.values())
        late = [child for child in self.children.values() if child.ends is not None and now >= child.ends]
        if late:
            self.stop("wall", late)
        if now >= self.next_watch:
            self.next_watch = now + WATCH
            if self.busy() and (self.ran_out() or memory(self.family()) > self.limits["memory"]):
                self.stop("memory", self.children.values())

    def ran_out(self) -> bool:
        """Whether the kernel has ended anybody for want of memory since this was asked last."""
        before, self.ooms = self.ooms, out_of_memory(self.limits)
        return self.ooms > before

    def stop(self, limit: str, victims: Iterable[Child]) -> None:
        """Ends the victims, and with them everything nobody asked for: a bomb hides behind its orphans."""
        victims = list(victims)
        for child in victims:
            child.limit, child.ends = child.limit or limit, None
        self.kill_all(keep=[child for child in self.children.values() if child not in victims])

    def family(self) -> list[int]:
        return [pid for pid in processes() if pid != 1] if INIT else sorted(below(os.getpid(), parents()))

    def kill_all(self, keep: Iterable[Child]) -> None:
        """Kills what is not `keep` or below it. Stopped processes cannot fork while the others are looked for.

        What was killed still has its memory for a moment, which the next command must not be charged with.
        """
        if INIT and not keep:
            killed = {pid for pid in processes() if pid != 1}
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # everything in this namespace but ourselves, at one stroke
            await_end(killed)
            return
        for number in [signal.SIGSTOP] * 8 + [signal.SIGKILL]:
            tree = parents()
            everything = set(tree) - {1} if INIT else below(os.getpid(), tree)
            kept = {pid for child in keep for pid in {child.pid} | below(child.pid, tree)}
            for pid in everything - kept:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        await_end(everything - kept)


def become(
    argv: list[str],
    cwd: str,
    env: Mapping[str, str],
    streams: Sequence[int],
    failing: int,
    limits: Mapping[str, Any],
) -> NoReturn:
    """The forked process turns into the command; its limits hold for all that it starts."""
    try:
        os.setsid()
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for target, fd in enumerate(streams):
            os.dup2(fd, target)
        if limits.get("user") and os.getuid() == 0:
            os.seteuid(0)  # whoever is not dumpable has files in /proc that are root's
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory runs out it is a command that goes, not the warden
        cpu = max(1, round(limits["cpu"]))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["disk"], limits["disk"]))
        resource.setrlimit(resource.RLIMIT_DATA, (limits["memory"], limits["memory"]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if limits.get("user") and os.getuid() == 0:
            user = limits["user"]
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
            resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"], limits["processes"]))
        if cwd:
            os.chdir(cwd)
        os.execvpe(argv[0], argv, {**os.environ, **env})
    except BaseException as error:  # noqa: BLE001 - a forked process must not go on as a second warden
        os.write(failing, str(getattr(error, "errno", None) or errno.EINVAL).encode())
    finally:
        os._exit(127)


def settle(limits: Mapping[str, Any]) -> None:
    """Makes the folder to work in, and gives up what root may do: files are opened, and commands run, as the user.

    The real user stays root, so that the user cannot signal the warden; where it is not root there is nothing to give
    up.
    """
    folder, user = limits.get("folder"), limits.get("user")
    if folder:
        os.makedirs(folder, exist_ok=True)
        os.environ["HOME"] = folder
        os.chdir(folder)
    if user and os.geteuid() == 0:
        if folder:
            os.chown(folder, user, user)
        os.setgroups([])
        os.setresgid(0, user, 0)
        os.setresuid(0, user, 0)


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parents() -> dict[int, int]:
    """The parent of every process."""
    found = {}
    for pid in processes():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            found[pid] = int(file.read().rpartition(b")")[2].split()[1])
    return found


def await_end(pids: Iterable[int]) -> None:
    """Returns when these processes that were killed are gone, or dead and not reaped yet."""
    late = time.monotonic() + DYING
    left = set(pids)
    while left and time.monotonic() < late:
        left = {pid for pid in left if state(pid) not in "ZX"}
        if left:
            time.sleep(0.001)


def state(pid: int) -> str:
    """The letter that /proc has for it; X if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return chr(file.read().rpartition(b")")[2].split()[0][0])
    except OSError:
        return "X"


def below(root: int, tree: Mapping[int, int]) -> set[int]:
    """All descendants of a process."""
    children: dict[int, list[int]] = {}
    for pid, parent in tree.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    left = [root]
    while left:
        for pid in children.get(left.pop(), ()):
            found.add(pid)
            left.append(pid)
    return found


def memory(pids: Iterable[int]) -> int:
    """Bytes of private and shared memory that is in nobody's file. Shared pages count once for each who has them."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith((b"RssAnon:", b"RssShmem:")):
                    total += 1024 * int(line.split()[1])
    return total


def out_of_memory(limits: Mapping[str, Any]) -> int:
    """How many processes the kernel has ended because the sandbox's control group was out of memory; 0 if it has none
    that can be read: `limits["events"]` is a descriptor, else it is where containers have theirs (versions 2 and 1)."""
    if "events" in limits:
        lines = os.pread(limits["events"], 4096, 0).splitlines()
    else:
        lines = []
        for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                lines = file.read().splitlines()
                break
    return sum(int(line.split()[1]) for line in lines if line.startswith(b"oom_kill "))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, for where we are not process 1
    limits = json.loads(sys.argv[1])
    # The host's pipes move away from where children have theirs; Python marks them as not to be inherited.
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    settle(limits)
    warden = Warden(source, sink, limits)
    try:
        warden.run()
    except BrokenPipeError:  # the host is gone
        pass
    finally:
        warden.kill_all(keep=())


main()
