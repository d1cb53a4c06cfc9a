"""What every sandbox does, on the backends that run here. What they withstand is tested by `make test-sandbox`."""

import asyncio
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from envs import (
    ConfigError,
    Environment,
    Harness,
    Hooks,
    InfrastructureError,
    Rollout,
    Rubric,
    ScriptedClient,
    Task,
    Taskset,
    Trajectory,
    run_task,
)
from envs.clients.scripted import tool_call
from envs.harness import bash_agent, python_repl
from envs.sandbox import (
    E2B,
    Backend,
    Bubblewrap,
    Daytona,
    Docker,
    Kubernetes,
    Limits,
    Modal,
    Prime,
    Sandbox,
    SandboxPool,
    TrustedSubprocess,
)
from envs.sandbox.bubblewrap import find_python
from envs.sandbox.owner import crashed, owner
from envs.sandbox.remote import warden_argv
from envs.sandbox.repl import PythonREPL
from envs.sandbox.seccomp import seccomp_filter
from envs.sandbox.warded import WardedSandbox
from envs.sandbox.wire import PumpedWire


def works(backend: Backend) -> bool:
    async def try_one() -> None:
        await (await backend.start(Limits())).close()

    try:
        asyncio.run(try_one())
    except ConfigError:
        return False
    return True


BACKENDS = [backend for backend in (TrustedSubprocess(model_code=True), Bubblewrap()) if works(backend)]
if "UPSWING_TEST_IMAGE" in os.environ:  # make test-docker
    BACKENDS = [Docker(os.environ["UPSWING_TEST_IMAGE"])]
LIMITS = Limits(wall=20, cpu=20, memory=2**28, processes=32, disk=2**25, files=500, output=1000, deadline=120)


@pytest_asyncio.fixture(params=BACKENDS, ids=lambda backend: type(backend).__name__)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    sandbox = await request.param.start(LIMITS)
    yield sandbox
    await sandbox.close()
    await sandbox.close()


async def test_a_command_and_what_came_of_it(sandbox: Sandbox) -> None:
    result = await sandbox.exec("cat; echo $GREETING >&2; exit 3", stdin=b"in \xff\x00", env={"GREETING": "hello"})
    assert (result.code, result.stdout, result.stderr, result.limit) == (3, b"in \xff\x00", b"hello\n", "")
    assert not result.ok and result.text() == "in \ufffd\x00\nhello\n[exit code 3]"
    assert (await sandbox.exec(["printf", "%s", "$HOME *"])).stdout == b"$HOME *"
    missing = await sandbox.exec(["no-such-program"])
    assert (missing.code, missing.stderr) == (None, b"no-such-program: No such file or directory")
    assert (await sandbox.exec("kill -9 $$")).text() == "[ended by signal 9]"


async def test_commands_run_side_by_side(sandbox: Sandbox) -> None:
    await sandbox.exec("mkfifo pipe")
    wrote, read = await asyncio.gather(sandbox.exec("echo hi > pipe"), sandbox.exec("cat pipe"))
    assert wrote.ok and read.stdout == b"hi\n"


async def test_time_and_output_have_limits(sandbox: Sandbox) -> None:
    slow = await sandbox.exec("echo begun; sleep 60", wall=0.5)
    assert (slow.limit, slow.stdout) == ("wall", b"begun\n") and 0.5 <= slow.seconds < 10
    assert slow.text().endswith("it ran into the sandbox's limit 'wall']")
    loud = await sandbox.exec("head -c 5000 /dev/zero; head -c 3000 /dev/zero >&2")
    assert (len(loud.stdout), len(loud.stderr), loud.dropped) == (1000, 1000, 6000)
    assert loud.text().endswith("[6000 more bytes of output were thrown away]")


async def test_files_in_and_out(sandbox: Sandbox, tmp_path: Path) -> None:
    await sandbox.write("a/b.bin", bytes(range(256)) * 100)
    assert await sandbox.read("a/b.bin") == bytes(range(256)) * 100
    await sandbox.write("a/b.bin", b"short")
    assert (await sandbox.exec("cat b.bin", cwd="a")).stdout == b"short"
    with pytest.raises(FileNotFoundError):
        await sandbox.read("missing")
    with pytest.raises(IsADirectoryError):
        await sandbox.read("a")

    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (source / "deep" / "run.sh").chmod(0o755)
    await sandbox.upload(source, "up")
    assert (await sandbox.exec("up/deep/run.sh")).stdout == b"ran\n"
    await sandbox.download("up", tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "run.sh").read_text() == "#!/bin/sh\necho ran\n"
    await sandbox.download("a/b.bin", tmp_path / "b.bin")
    assert (tmp_path / "b.bin").read_bytes() == b"short"


async def test_a_process_that_goes_on(sandbox: Sandbox) -> None:
    process = await sandbox.spawn("while read line; do echo got $line; done; exit 4")
    for word in (b"one", b"two"):
        await process.send(word + b"\n")
        assert await process.receive() == b"got " + word + b"\n"
    await process.signal(signal.SIGTERM)
    assert (await process.wait(), await process.receive(), await process.receive()) == (-15, b"", b"")
    other = await sandbox.spawn("sleep 100")
    await sandbox.kill()
    assert await other.wait() == -9


async def test_a_closed_sandbox_says_so(sandbox: Sandbox) -> None:
    running = asyncio.create_task(sandbox.exec("sleep 100"))
    await asyncio.sleep(0.1)
    await sandbox.close()
    with pytest.raises(InfrastructureError, match="ended by itself"):
        await running
    with pytest.raises(InfrastructureError, match="sandbox is closed"):
        await sandbox.exec("true")


async def test_a_live_python_keeps_its_state(sandbox: Sandbox) -> None:
    repl = PythonREPL(sandbox)
    assert await repl.run("import os\nx = 20\ndef f(): return x") == ""
    assert await repl.run("print('hi'); os.system('echo from a program'); f() + 22") == "hi\nfrom a program\n42\n"
    assert await repl.run("f() + 22") == "42\n"
    assert await repl.run("1 +") == '  File "<call 4>", line 1\n    1 +\n       ^\nSyntaxError: invalid syntax\n'
    raised = await repl.run("def g():\n    return 1 / 0\n\ng()")
    assert raised.startswith("Traceback (most recent call last):\n") and "return 1 / 0" in raised
    assert raised.endswith("ZeroDivisionError: division by zero\n") and "repl.py" not in raised
    assert await repl.run("import sys; sys.exit(3)") == "SystemExit: 3\n"
    assert (await repl.run("print('x' * 5000)")).endswith("x\n[4001 more bytes of output were thrown away]")
    assert await repl.run("x") == "20\n"


async def test_a_live_python_that_will_not_end(sandbox: Sandbox) -> None:
    repl = PythonREPL(sandbox)
    await repl.run("x = 20")
    stopped = await repl.run("while True: pass", wall=0.5)
    assert "KeyboardInterrupt" in stopped and stopped.endswith("[interrupted after 0.5 s]")
    assert await repl.run("x") == "20\n"
    stubborn = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    assert (await repl.run(stubborn, wall=0.2)).endswith("Python was ended and its variables are gone]")
    assert "NameError" in await repl.run("x")
    assert await repl.run("import os; os._exit(7)") == "[Python ended (7); its variables are gone]"
    forged = "import os\nfor fd in range(3, 9):\n try: os.write(fd, b'{\"number\": 5}\\n[[\\n\\xff\\n')\n"
    forged += " except OSError: pass"
    await repl.run(forged)
    assert await repl.run("1 + 1") == "2\n"


def test_the_subprocess_backend_wants_to_be_told() -> None:
    with pytest.raises(ConfigError, match=r"does not isolate.*TrustedSubprocess\(model_code=True\)"):
        asyncio.run(TrustedSubprocess().start(LIMITS))


async def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"needs bwrap, unshare.*apt-get install bubblewrap util-linux"):
        await Bubblewrap().start(LIMITS)


def test_a_python_that_nobody_may_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no Python for the sandbox.*apt-get install python3"):
        find_python(str(tmp_path / "python3"))


@pytest.mark.parametrize(
    ("backend", "extra"),
    [
        (E2B(), "e2b"),
        (Modal(), "modal"),
        (Daytona(), "daytona"),
        (Prime(), "prime-sandboxes"),
        (Kubernetes(), "kubernetes"),
    ],
)
async def test_a_missing_client_is_named(backend: Backend, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("e2b", "modal", "daytona", "prime_sandboxes", "kubernetes_asyncio"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ConfigError, match=rf"cannot be imported .*pip install 'upswing\[{extra}\]'"):
        await backend.start(LIMITS)
    with pytest.raises(ConfigError, match="cannot be imported"):
        await backend.reap()


async def test_a_warden_at_the_end_of_a_line_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """As services have it that carry text only, and show what was typed."""
    folder = tempfile.mkdtemp(dir="/tmp")
    monkeypatch.setattr("envs.sandbox.remote.FOLDER", folder)
    process = await asyncio.create_subprocess_exec(
        *warden_argv(LIMITS, sys.executable, text=True),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def send(data: bytes) -> None:
        wire.feed(data)  # the echo
        stdin.write(data + b"\n")
        await stdin.drain()

    async def pieces() -> AsyncIterator[str]:
        while piece := await stdout.read(1000):
            yield piece.decode("ascii")

    async def end() -> None:
        stdin.close()
        await process.wait()

    wire = PumpedWire(send, end, text=True)
    wire.follow(pieces())
    sandbox = await WardedSandbox.over(wire, LIMITS, what="text")
    await sandbox.write("a", bytes(range(256)) * 4000)
    assert (await sandbox.exec("cat >&2; cat a", stdin=b"in")).stderr == b"in"
    assert await sandbox.read("a") == bytes(range(256)) * 4000
    if os.geteuid() == 0:  # its commands run as somebody who can do nothing to it
        whoami = await sandbox.exec(
            "id -u; ls -ld . | cut -c1-10; kill -9 $PPID; touch /usr/x; grep -c 'Max processes *32 ' /proc/self/limits"
        )
        assert whoami.stdout.decode().split() == ["1000", "drwx------", "1"]
    process.kill()
    with pytest.raises(InfrastructureError, match="the text sandbox ended by itself"):
        await sandbox.exec("sleep 60")
    await sandbox.close()
    shutil.rmtree(folder)


def test_an_owner_that_is_gone_is_known() -> None:
    assert not crashed(owner())
    program = "from envs.sandbox.owner import owner; print(owner())"
    gone = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip()
    assert crashed(gone)
    assert not any(crashed(name) for name in (None, "", "0123456789ab-1-2", gone.rpartition("-")[0] + "x-"))


def test_the_filter_of_system_calls() -> None:
    for machine, mount in (("x86_64", 165), ("aarch64", 40)):
        program = seccomp_filter(machine)
        steps = [struct.unpack("<HBBI", program[i : i + 8]) for i in range(0, len(program), 8)]
        assert (0x15, 0, 1, mount) in steps and len(steps) < 256
        assert steps[-1] == (0x06, 0, 0, 0x7FFF0000)
    with pytest.raises(ConfigError, match="no system call filter for the machine 'sparc64'"):
        seccomp_filter("sparc64")


class Flaky:
    """A backend that fails at first."""

    def __init__(self, failures: int) -> None:
        self.failures, self.reaped, self.open, self.most = failures, 0, 0, 0

    async def start(self, limits: Limits) -> Sandbox:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise InfrastructureError("no room")
        return await TrustedSubprocess(model_code=True).start(limits)

    async def reap(self) -> int:
        self.reaped += 1
        return 0


async def test_a_pool_tries_again_and_gives_up_at_last() -> None:
    backend = Flaky(failures=2)
    pool = SandboxPool(backend, LIMITS, retries=2, backoff=0.001)
    for _ in range(2):
        async with pool.sandbox() as sandbox:
            assert (await sandbox.exec("true")).ok
    assert backend.reaped == 1
    backend.failures = 3
    with pytest.raises(InfrastructureError, match="no room"):
        async with pool.sandbox():
            pass
    assert backend.failures == 0


async def test_a_pool_has_so_many_at_once_and_no_more() -> None:
    pool = SandboxPool(TrustedSubprocess(model_code=True), LIMITS, most=2)
    here, most = 0, 0
    both = asyncio.Barrier(2)

    async def use() -> None:
        nonlocal here, most
        async with pool.sandbox() as sandbox:
            here += 1
            most = max(most, here)
            await both.wait()
            await sandbox.exec("true")
            here -= 1

    await asyncio.gather(*(use() for _ in range(4)))
    assert most == 2


async def drive(harness: Harness, *replies: object) -> tuple[Trajectory, Rollout]:
    task = Task.ask("a", "Compute")
    kept: list[Rollout] = []

    async def keep(rollout: Rollout) -> str:
        kept.append(rollout)
        return await harness(rollout)

    environment = Environment(Taskset({"train": [task]}), keep, Rubric({}))
    record = await run_task(environment, task, ScriptedClient(replies), retries=0)  # type: ignore[arg-type]
    assert record.failure is None, record.failure
    return record, kept[0]


POOL = SandboxPool(BACKENDS[-1], LIMITS)


async def test_an_agent_in_a_shell_leaves_its_files_to_be_scored() -> None:
    async def put(rollout: Rollout) -> None:
        await rollout.state.sandbox.write("numbers", b"1\n2\n3\n")

    async def take(rollout: Rollout) -> None:
        rollout.state.answer = await rollout.state.sandbox.read("answer")

    harness = bash_agent(POOL, max_turns=3, hooks=[Hooks(on_setup=put, on_stop=take)])
    sums = tool_call("bash", '{"command": "paste -sd+ numbers | bc > answer || echo 6 > answer"}')
    record, rollout = await drive(harness, sums, tool_call("bash", '{"command": "cat numbers; exit 2"}'), "done")
    assert record.messages[-2]["content"] == "1\n2\n3\n[exit code 2]"
    assert rollout.state.answer == b"6\n"
    with pytest.raises(InfrastructureError, match="closed"):
        await rollout.state.sandbox.exec("true")


async def test_an_agent_in_a_live_python() -> None:
    harness = python_repl(POOL, max_turns=4)
    first, second = tool_call("python", '{"code": "x = 6 * 7"}'), tool_call("python", '{"code": "x"}')
    record, _ = await drive(harness, first, second, "42")
    assert [m["content"] for m in record.messages if m["role"] == "tool"] == ["[no output]", "42\n"]
