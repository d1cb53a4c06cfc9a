"""Code that really attacks the machine it runs on, and what came of it. `make test-sandbox` runs it.

Every test ends with a sandbox that still answers, or that was closed; the fixture then looks for what it left behind.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import pytest_asyncio

from envs import ConfigError, InfrastructureError
from envs.sandbox.base import Limits, Sandbox
from envs.sandbox.bubblewrap import Bubblewrap

SMALL = Limits(wall=5, cpu=3, memory=2**28, processes=32, disk=2**25, files=2000, output=2**14, deadline=120)

Start = Callable[..., Awaitable[Sandbox]]


@pytest.fixture(autouse=True)
def _bubblewrap() -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: the attacks look for users that only root can give to sandboxes")
    if problem := why_not():
        pytest.skip(f"NOT TESTED: {problem}")


@cache
def why_not() -> str:
    """Why there can be no sandbox on this machine, if that is so."""

    async def try_one() -> None:
        await (await Bubblewrap().start(SMALL)).close()

    try:
        asyncio.run(try_one())
    except ConfigError as error:
        return str(error)
    return ""


def strangers() -> set[tuple[str, str]]:
    """Processes of users that only sandboxes have: (pid, command)."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "status").read_text() if entry.name.isdigit() else ""
        except OSError:
            continue
        if "\nUid:\t2000" in status:
            found.add((entry.name, status.split("\n", 1)[0]))
    return found


async def gone() -> None:
    """Nothing is left, once the kernel has buried what was killed from outside."""
    for _ in range(100):
        if not strangers():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"left over: {strangers()}")


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Starts sandboxes; all are closed at the end, after which nothing of them may be left."""
    opened: list[Sandbox] = []

    async def begin(limits: Limits = SMALL) -> Sandbox:
        opened.append(await Bubblewrap().start(limits))
        return opened[-1]

    yield begin
    for sandbox in opened:
        await sandbox.close()
    await gone()
    assert "upswing" not in Path("/proc/mounts").read_text()


@pytest_asyncio.fixture
async def sandbox(start: Start) -> Sandbox:
    return await start()


@pytest.fixture
def python() -> Callable[[str], list[str]]:
    """The command that runs Python code."""
    return lambda code: ["python3", "-c", code]


Python = Callable[[str], list[str]]


async def answers(sandbox: Sandbox) -> None:
    alive = await sandbox.exec("echo alive")
    assert (alive.code, alive.stdout) == (0, b"alive\n"), alive


def free_memory() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


# Too much of something


BOMBS = {
    "shell": "bomb() { bomb | bomb & }; bomb; sleep 60",
    "python": "python3 -c 'import os\nwhile True:\n try: os.fork()\n except OSError: pass'",
    "sessions": "python3 -c 'import os\nwhile True:\n try:\n  if os.fork() == 0: os.setsid()\n except OSError: pass'",
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_fork_bomb_is_counted_and_ended(sandbox: Sandbox, bomb: str) -> None:
    running = asyncio.create_task(sandbox.exec(BOMBS[bomb], wall=2))
    await asyncio.sleep(1.5)
    assert 2 <= len(strangers()) <= SMALL.processes + 4
    result = await running
    assert result.limit == "wall"
    await answers(sandbox)
    for _ in range(50):  # they are killed at one stroke; the kernel takes its time to bury them
        left = int((await sandbox.exec("ls -d /proc/[0-9]* 2>/dev/null | wc -l")).stdout)
        if left <= 6:  # the warden, the shell, ls, wc
            break
        await asyncio.sleep(0.1)
    assert left <= 6


async def test_a_bomb_that_leaves_its_command_is_cleared_for_the_next_one(sandbox: Sandbox) -> None:
    await sandbox.exec("(setsid sh -c 'bomb() { bomb | bomb & }; bomb; sleep 60' &) >/dev/null 2>&1 </dev/null")
    await asyncio.sleep(1)
    for _ in range(3):
        result = await sandbox.exec("echo alive", wall=5)
        if result.ok:
            break
    assert result.stdout == b"alive\n", result
    await sandbox.kill()
    await answers(sandbox)


async def test_ten_gigabytes_at_once(sandbox: Sandbox, python: Python) -> None:
    result = await sandbox.exec(python("x = bytearray(10 * 2**30)"))
    assert result.code == 1 and b"MemoryError" in result.stderr
    await answers(sandbox)


HOGS = {
    "many processes": """
import os
for _ in range(20):
    if os.fork() == 0:
        x = bytearray(2**26)
        for i in range(0, len(x), 4096): x[i] = 1
        import time; time.sleep(30)
os.wait()""",
    "shared memory": """
import mmap, time
maps = []
for _ in range(40):
    m = mmap.mmap(-1, 2**28); maps.append(m)
    for i in range(0, 2**28, 4096): m[i] = 1
time.sleep(30)""",
}


@pytest.mark.parametrize("hog", HOGS)
async def test_memory_is_summed_over_processes_and_counts_when_shared(
    sandbox: Sandbox, python: Python, hog: str
) -> None:
    before = free_memory()
    running = asyncio.create_task(sandbox.exec(python(HOGS[hog])))
    least = before
    while not running.done():
        least = min(least, free_memory())
        await asyncio.sleep(0.02)
    assert running.result().limit == "memory", running.result()
    assert before - least < 2**31  # 256 MiB allowed, and what fits between two looks of the warden
    await answers(sandbox)


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.memfd_create('x')",
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); n = c.shmget(0, 2**20, 0o1600)\n"
        "assert n >= 0, ctypes.get_errno()",
    ],
)
async def test_memory_that_no_limit_counts_cannot_be_had(sandbox: Sandbox, python: Python, code: str) -> None:
    assert (await sandbox.exec(python(code))).code == 1


async def test_an_endless_loop(start: Start, python: Python) -> None:
    sandbox = await start(replace(SMALL, cpu=3))  # more than one process can burn in a second of wall time
    result = await sandbox.exec(python("while True: pass"), wall=1)
    assert (result.limit, result.code) == ("wall", -9) and result.seconds >= 1
    cpu = await sandbox.exec(python("while True: pass"), wall=60)
    assert (cpu.code, cpu.limit) == (-24, "")  # SIGXCPU
    await answers(sandbox)


async def test_ignoring_every_signal_does_not_help(sandbox: Sandbox, python: Python) -> None:
    code = "import signal, time\nfor n in range(1, 65):\n try: signal.signal(n, signal.SIG_IGN)\n except: pass\n"
    result = await sandbox.exec(python(code + "while True: time.sleep(1)"), wall=1)
    assert (result.limit, result.code) == ("wall", -9)


@pytest.mark.parametrize("folder", ["/work", "/tmp", "/dev/shm"])
async def test_a_file_of_ten_gigabytes(sandbox: Sandbox, folder: str) -> None:
    result = await sandbox.exec(f"dd if=/dev/zero of={folder}/big bs=1M count=10240")
    assert not result.ok
    size = int((await sandbox.exec(f"stat -c %s {folder}/big")).stdout)
    assert size <= SMALL.disk
    with pytest.raises(OSError, match="No space left"):
        await sandbox.write("more", b"x" * 2**20)
    await sandbox.exec(f"rm {folder}/big")
    await sandbox.write("more", b"x")


async def test_files_together_are_counted(sandbox: Sandbox) -> None:
    result = await sandbox.exec("for i in $(seq 20); do head -c 8M /dev/zero > f$i || exit 1; done")
    assert not result.ok
    used = int(
        (await sandbox.exec("du -sk --apparent-size /work /tmp /dev/shm | awk '{s += $1} END {print s}'")).stdout
    )
    assert used * 1024 <= SMALL.disk + 2**20


async def test_millions_of_files(sandbox: Sandbox, python: Python) -> None:
    code = "for i in range(3_000_000): open(f'/tmp/{i}', 'w').close()"
    result = await sandbox.exec(python(code))
    assert result.code == 1 and b"No space left" in result.stderr
    made = int((await sandbox.exec("ls -U /tmp | wc -l")).stdout)
    assert made <= SMALL.files


@pytest.mark.parametrize("folder", ["/", "/etc", "/dev", "/run", "/usr", "/proc", "/var", "/home", "/root"])
async def test_there_is_nowhere_else_to_write(sandbox: Sandbox, folder: str) -> None:
    result = await sandbox.exec(f"mkdir -p {folder}/x && touch {folder}/x/y")
    assert not result.ok


async def test_output_without_end(sandbox: Sandbox) -> None:
    result = await sandbox.exec("yes", wall=2)
    assert result.limit == "wall" and len(result.stdout) == SMALL.output and result.dropped > 2**20
    await answers(sandbox)


async def test_a_process_that_floods_the_host_is_held_back(sandbox: Sandbox) -> None:
    process = await sandbox.spawn("yes")
    await asyncio.sleep(1)
    waiting = sum(len(piece) for piece in process._pieces._queue)  # type: ignore[attr-defined]
    assert waiting <= 2**20 + 2**16
    assert (await process.receive()).startswith(b"y\ny\n")
    await answers(sandbox)
    await process.signal(signal.SIGKILL)
    assert await process.wait() == -9


async def test_the_deadline_ends_everything(start: Start) -> None:
    sandbox = await start(replace(SMALL, deadline=2))
    await sandbox.exec("(setsid sleep 100 &) >/dev/null 2>&1 </dev/null")
    started = time.monotonic()
    assert (await sandbox.exec("sleep 100", wall=60)).limit == "deadline"
    assert time.monotonic() - started < 30
    assert (await sandbox.exec("echo alive")).limit == "deadline"
    with pytest.raises(TimeoutError):
        await sandbox.read("x")


# Out of the box


@pytest.mark.parametrize(
    "code",
    [
        "s = socket.socket(); s.settimeout(2); s.connect(('1.1.1.1', 53))",
        "s = socket.socket(); s.settimeout(2); s.connect(('127.0.0.1', PORT))",
        "s = socket.socket(socket.AF_INET6); s.settimeout(2); s.connect(('::1', PORT))",
        "s = socket.socket(socket.AF_UNIX); s.connect('\\0upswing-attack')",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
        "socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)",
        "socket.getaddrinfo('pypi.org', 443)",
    ],
)
async def test_there_is_no_network(sandbox: Sandbox, python: Python, code: str) -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    local = await asyncio.start_unix_server(lambda reader, writer: writer.close(), "\0upswing-attack")
    port = server.sockets[0].getsockname()[1]
    result = await sandbox.exec(python("import socket\n" + code.replace("PORT", str(port)) + "\nprint('reached')"))
    assert result.code == 1 and b"reached" not in result.stdout, result
    for listener in (server, local):
        listener.close()
        await listener.wait_closed()


async def test_the_machines_files_are_not_there(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for path in (tmp_path / "secret", Path("/etc/shadow"), Path("/etc/hostname"), Path(__file__), Path("/root/.ssh")):
        result = await sandbox.exec(["cat", str(path)])
        assert result.code == 1 and b"No such file" in result.stderr, (path, result)
    listed = (await sandbox.exec("ls -a /")).stdout.decode().split()
    assert set(listed) <= {".", "..", "bin", "dev", "etc", "lib", "lib32", "lib64", "proc", "run", "sbin", "tmp", "usr", "work"}  # fmt: skip  # noqa: E501
    devices = (await sandbox.exec("find /dev -type b -o -name mem -o -name kmsg -o -name fuse")).stdout
    assert devices == b""


async def test_nothing_of_the_hosts_environment_is_there(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "PYTHONPATH" in os.environ or "HOME" in os.environ
    names = {line.partition("=")[0] for line in (await sandbox.exec("env")).stdout.decode().splitlines()}
    assert names == {"PATH", "HOME", "TMPDIR", "LANG", "PYTHONDONTWRITEBYTECODE", "PWD"} | ({"_"} & names)


ESCAPES = {
    "another root": "chroot / true",
    "a mount": "mount -t tmpfs x /tmp",
    "a bind mount": "mount --bind /usr /tmp",
    "a user namespace": "unshare --user --map-root-user true",
    "a mount namespace": "unshare --mount true",
    "the namespace of process 1": "nsenter --target 1 --all true",
    "a device": "mknod /tmp/disk b 8 0",
    "another user": "setpriv --reuid=0 true",
    "sudo": "su -c true",
    "the kernel's settings": "echo 1 > /proc/sys/kernel/panic",
    "the kernel's keys": "echo b > /proc/sysrq-trigger",
    "the kernel's log": "dmesg | grep .",
    "a core pattern": "echo '|/bin/sh' > /proc/sys/kernel/core_pattern",
    "the memory of process 1": "head -c 1 /proc/1/mem",
    "the files of process 1": "ls /proc/1/fd/",
    "the root of process 1": "ls /proc/1/root/",
    "the environment of process 1": "cat /proc/1/environ",
    "the machine's processes": "ls -d /proc/[0-9]*/exe | xargs -n1 readlink | grep -v -e sh -e ls -e xargs -e readlink -e grep",  # noqa: E501
    "tracing": "python3 -c 'import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(0, 0, 0, 0) == -1)'",
    "bpf": "python3 -c 'import ctypes, sys; sys.exit(ctypes.CDLL(None).syscall(321, 0, 0, 0) == -1)'",
    "io_uring": "python3 -c 'import ctypes, sys; sys.exit(ctypes.CDLL(None).syscall(425, 1, 0) == -1)'",
    "clone with a namespace": "python3 -c 'import ctypes, sys; sys.exit(ctypes.CDLL(None).syscall(56, 0x10000011, 0) == -1)'",  # noqa: E501
    "system calls of the x32 kind": "python3 -c 'import ctypes, sys; sys.exit(ctypes.CDLL(None).syscall(0x40000000 + 101, 0) == -1)'",  # noqa: E501
    "raised limits": "ulimit -u 100000 && ulimit -d unlimited",
    "a lower score for the memory killer": "echo -1000 > /proc/self/oom_score_adj",
}


@pytest.mark.parametrize("escape", ESCAPES)
async def test_no_way_out(sandbox: Sandbox, escape: str) -> None:
    result = await sandbox.exec(ESCAPES[escape])
    assert result.code not in (0, None), result
    await answers(sandbox)


async def test_no_rights_at_all(sandbox: Sandbox) -> None:
    status = (await sandbox.exec("cat /proc/self/status")).stdout.decode()
    assert "CapEff:\t0000000000000000" in status and "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    assert "Groups:\t \n" in status or "Groups:\t1000 \n" in status or "Groups:\t65534 \n" in status


# Against the warden


@pytest.mark.parametrize("number", ["KILL", "STOP", "INT", "TERM", "SEGV", "CHLD", "HUP", "USR1", "PIPE", "ABRT"])
async def test_the_warden_does_not_hear_signals_from_inside(sandbox: Sandbox, number: str) -> None:
    await sandbox.exec(f"for i in $(seq 20); do kill -{number} 1; done; kill -{number} -1")
    await answers(sandbox)


async def test_a_pipe_or_link_in_a_files_place_does_not_hold_up_the_warden(sandbox: Sandbox) -> None:
    await sandbox.exec("mkfifo pipe; ln -s /dev/zero zero; ln -s /proc/self/mem mem; ln -s loop loop; mkdir folder")
    for path in ("pipe", "zero", "mem", "loop", "folder", "missing", "/proc/1/environ", "/dev/tty"):
        with pytest.raises(OSError):
            await sandbox.read(path)
    for path in ("pipe", "mem", "loop", "folder"):
        with pytest.raises(OSError):
            await sandbox.write(path, b"x")
    await answers(sandbox)


async def test_what_is_downloaded_stays_in_its_folder(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    await sandbox.exec("mkdir good bad; echo hi > good/a; ln -s /etc/shadow bad/link; ln good/a good/b")
    await sandbox.download("good", tmp_path / "good")
    assert (tmp_path / "good" / "a").read_text() == "hi\n"
    with pytest.raises(OSError, match="absolute path"):
        await sandbox.download("bad", tmp_path / "bad")
    assert (tmp_path / "outside").read_text() == "mine"


async def test_a_background_process_that_holds_the_pipes_does_not_hold_up_its_command(sandbox: Sandbox) -> None:
    result = await sandbox.exec("sleep 60 & echo started", wall=4)
    assert (result.ok, result.stdout) == (True, b"started\n")


async def test_sandboxes_do_not_see_each_other(start: Start) -> None:
    one, two = await start(), await start()
    await one.exec("echo secret > /tmp/secret; (sleep 60 &) >/dev/null 2>&1; echo hi > /dev/shm/x")
    assert (await two.exec("cat /tmp/secret /dev/shm/x")).code == 1
    assert b"sleep" not in (await two.exec("ps ax")).stdout
    bomb = asyncio.create_task(one.exec(BOMBS["python"], wall=3))
    await asyncio.sleep(0.5)
    for _ in range(5):
        await answers(two)  # its processes are counted apart
    await bomb


# The host's side of things


async def test_a_sandbox_that_is_killed_from_outside_is_infrastructure(sandbox: Sandbox) -> None:
    running = asyncio.create_task(sandbox.exec("sleep 60", wall=60))
    await asyncio.sleep(0.3)
    for pid, name in strangers():
        if name.endswith("bwrap"):  # a command that is killed is a result; it is the sandbox that has to go
            os.kill(int(pid), signal.SIGKILL)
    with pytest.raises(InfrastructureError, match="the bubblewrap sandbox ended by itself"):
        await running
    with pytest.raises(InfrastructureError):
        await sandbox.exec("true")


HOST = """
import asyncio
from envs.sandbox.bubblewrap import Bubblewrap
from envs.sandbox.base import Limits
async def main():
    boxes = [await Bubblewrap().start(Limits()) for _ in range(3)]
    for box in boxes:
        await box.exec("(setsid sleep 1000 &) >/dev/null 2>&1 </dev/null")
        await box.spawn("sleep 1000")
    print("ready", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_outlives_a_host_that_dies(number: signal.Signals) -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE)
    assert host.stdout is not None and host.stdout.readline() == b"ready\n"
    assert len(strangers()) >= 9
    host.send_signal(number)
    host.wait()
    host.stdout.close()
    await gone()


async def test_two_hundred_at_concurrency_32(start: Start) -> None:  # `start` looks for leftovers
    room = asyncio.Semaphore(32)

    async def one(number: int) -> str:
        async with room:
            sandbox = await Bubblewrap().start(SMALL)
            try:
                return (await sandbox.exec(f"echo {number}", wall=30)).stdout.decode().strip()
            finally:
                await sandbox.close()

    started = time.perf_counter()
    results = await asyncio.gather(*(one(number) for number in range(200)))
    print(f"\n200 sandboxes at concurrency 32: {200 / (time.perf_counter() - started):.0f} per second")
    assert results == [str(number) for number in range(200)]
