"""What containers withstand, and what becomes of them, in a real Docker daemon. `make test-docker` runs it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from envs import ConfigError, InfrastructureError
from envs.sandbox import Docker, Limits, Sandbox, SandboxPool
from envs.sandbox.docker import Daemon
from envs.sandbox.owner import LABEL

IMAGE = os.environ.get("UPSWING_TEST_IMAGE", "")
pytestmark = pytest.mark.skipif(not IMAGE, reason="NOT TESTED: no docker daemon of its own (make test-docker)")
SMALL = Limits(wall=5, cpu=3, memory=2**28, processes=32, disk=2**25, files=2000, output=2**14, deadline=120)


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """A container; none is left afterwards."""
    sandbox = await Docker(IMAGE).start(SMALL)
    yield sandbox
    await sandbox.close()
    assert await containers() == []


async def containers() -> list[dict[str, object]]:
    found = await Daemon.named("").call("GET", "/containers/json?all=1")
    assert isinstance(found, list)
    return found


async def none_left() -> None:
    for _ in range(200):
        if not await containers():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"left over: {await containers()}")


async def answers(sandbox: Sandbox) -> None:
    alive = await sandbox.exec("echo alive")
    assert (alive.code, alive.stdout) == (0, b"alive\n"), alive


ESCAPES = {
    "root": "id -u | grep -qx 0",
    "the image's files": "echo x > /usr/bin/x || echo x > /etc/x || mkdir /x",
    "the first process": "kill -9 1; kill -STOP 1; false",
    "its memory": "cat /proc/1/mem || cat /proc/1/environ || ls /proc/1/fd/",
    "mounts": "mount -t tmpfs x /tmp || unshare -r -m true",
    "capabilities": "grep CapEff /proc/self/status | grep -v 0000000000000000",
    "the network": "test $(wc -l < /proc/net/dev) -gt 3",
    "the kernel": "echo 1 > /proc/sys/kernel/panic || echo c > /proc/sysrq-trigger",
    "devices": "ls /dev/sda /dev/vda /dev/mem /dev/kvm",
    "the daemon": "ls /var/run/docker.sock",
}


@pytest.mark.parametrize("way", ESCAPES)
async def test_no_way_out(sandbox: Sandbox, way: str) -> None:
    assert (await sandbox.exec(ESCAPES[way])).code != 0
    await answers(sandbox)


async def test_a_fork_bomb(sandbox: Sandbox) -> None:
    bomb = "python3 -c 'import os\nwhile True:\n try:\n  if os.fork() == 0: os.setsid()\n except OSError: pass'"
    assert (await sandbox.exec(bomb, wall=1.5)).limit == "wall"
    await answers(sandbox)


async def test_memory_of_one_process(sandbox: Sandbox) -> None:
    alone = await sandbox.exec(["python3", "-c", "bytearray(10**10)"])
    assert alone.code == 1 and b"MemoryError" in alone.stderr
    await answers(sandbox)


HUNGRY = {
    "eight children": "for _ in range(8):\n if os.fork() == 0:\n  x = b'x' * (50 * 2**20)\n  break\ntime.sleep(60)",
    "itself and a child": "os.fork()\nx = b'x' * (200 * 2**20)\ntime.sleep(60)",
}


@pytest.mark.parametrize("who", HUNGRY)
async def test_memory_of_many(sandbox: Sandbox, who: str) -> None:
    """Whether the kernel ends some of them or the warden all, the limit is named and nobody stays to eat the next."""
    for _ in range(3):
        ended = await sandbox.exec(["python3", "-c", f"import os, time\n{HUNGRY[who]}"], wall=30)
        assert ended.limit == "memory", ended
        await answers(sandbox)


async def test_a_disk_that_is_full(sandbox: Sandbox) -> None:
    await sandbox.exec(
        "head -c 1G /dev/zero > big; head -c 1G /dev/zero > /tmp/big; head -c 1G /dev/zero > /dev/shm/big"
    )
    used = int((await sandbox.exec("cat big /tmp/big /dev/shm/big | wc -c")).stdout)
    assert used <= 3 * SMALL.disk
    many = await sandbox.exec(["python3", "-c", "for i in range(5000): open(f'f{i}', 'w').close()"], wall=60)
    assert many.code == 1 and b"No space left on device" in many.stderr
    await answers(sandbox)


async def test_two_containers_do_not_see_each_other(sandbox: Sandbox) -> None:
    other = await Docker(IMAGE).start(SMALL)
    await other.exec("echo secret > /tmp/secret; (sleep 60 &) >/dev/null 2>&1")
    assert (await sandbox.exec("cat /tmp/secret")).code == 1
    assert b"sleep" not in (await sandbox.exec("ps ax")).stdout
    await other.close()


async def test_a_container_that_is_removed_from_outside_is_infrastructure(sandbox: Sandbox) -> None:
    running = asyncio.create_task(sandbox.exec("sleep 60", wall=60))
    await asyncio.sleep(0.3)
    (here,) = await containers()
    await Daemon.named("").remove(str(here["Id"]))
    with pytest.raises(InfrastructureError, match="the docker sandbox ended by itself"):
        await running


HOST = """
import asyncio
from envs.sandbox import Docker, Limits
async def main():
    boxes = [await Docker({image!r}).start(Limits()) for _ in range(2)]
    await boxes[0].exec("(setsid sleep 1000 &) >/dev/null 2>&1 </dev/null")
    print("ready", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


async def test_nothing_outlives_a_host_that_dies() -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST.format(image=IMAGE)], stdout=subprocess.PIPE)
    assert host.stdout is not None and host.stdout.readline() == b"ready\n"
    assert len(await containers()) == 2
    host.send_signal(signal.SIGKILL)
    host.wait()
    host.stdout.close()
    await none_left()


async def test_orphans_are_reaped_and_the_living_left_alone(sandbox: Sandbox) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "from envs.sandbox.owner import owner; print(owner())"], capture_output=True, text=True
    ).stdout.strip()
    stray = {"Image": IMAGE, "Cmd": ["sleep", "1000"], "Labels": {LABEL: gone}}
    daemon = Daemon.named("")
    made = await daemon.call("POST", "/containers/create", stray)
    await daemon.call("POST", f"/containers/{made['Id']}/start")
    elsewhere = await daemon.call("POST", "/containers/create", {**stray, "Labels": {LABEL: "0123456789ab-7-1"}})
    assert await Docker(IMAGE).reap() == 1
    left = {each["Id"] for each in await containers()}
    assert made["Id"] not in left and elsewhere["Id"] in left and len(left) == 2
    await answers(sandbox)
    await daemon.remove(elsewhere["Id"])


async def test_many_at_once() -> None:
    pool = SandboxPool(Docker(IMAGE), SMALL, most=16, starting=8)

    async def one(number: int) -> str:
        async with pool.sandbox() as sandbox:
            return (await sandbox.exec(f"echo {number}", wall=60)).stdout.decode().strip()

    started = time.perf_counter()
    assert await asyncio.gather(*(one(number) for number in range(32))) == [str(number) for number in range(32)]
    print(f"\n32 containers at concurrency 16: {32 / (time.perf_counter() - started):.1f} per second")
    assert await containers() == []


async def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no docker daemon at /nowhere.*systemctl start docker"):
        await Docker(IMAGE, host="unix:///nowhere").start(SMALL)
    with pytest.raises(ConfigError, match=r"docker has no image 'upswing-none:1' and cannot pull it"):
        await Docker("upswing-none:1").start(SMALL)
    with pytest.raises(ConfigError, match=r"Unknown runtime specified runsc.*check Docker\(image"):
        await Docker(IMAGE, runtime="runsc").start(SMALL)
    with pytest.raises(ConfigError, match=r"python9.*check Docker\(image"):
        await Docker(IMAGE, python="python9").start(SMALL)
    with pytest.raises(ConfigError, match="expected unix:///path or tcp://host:port"):
        await Docker(IMAGE, host="ssh://somewhere").start(SMALL)
    assert json.dumps(await containers()) == "[]"
