"""A server's process: it starts, says what is wrong, and leaves nothing behind, however its starter ends."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web
from server_processes import Make, alive, gone, pids, until

from envs.errors import ConfigError
from rl.inference.engine import EngineError
from rl.inference.sglang.ports import take_ports
from rl.inference.sglang.server import Attached, Patience


def nothing(text: str) -> None:
    """Reports are not looked at."""


async def test_it_starts_with_progress_and_stops_with_all_it_started(make: Make, tmp_path: Path) -> None:
    looked = tmp_path / "looked"
    server, told = make("server 0", "--after", str(looked)), list[str]()

    def tell(text: str) -> None:
        told.append(text)
        looked.touch()

    await server.start(tell)
    assert told[0].endswith("s: Load weight begin.") and told[0].startswith("server 0, ")
    assert told[-1].startswith("server 0 is ready after ") and told[-1].endswith(f" s at {server.url}")
    running = await pids(server.url)
    assert all(map(alive, running)) and server.returncode is None
    await server.stop()
    assert server.returncode == 128 + signal.SIGTERM
    assert not any(map(alive, running))  # the one in another session, too
    await server.stop()
    assert (tmp_path / "logs" / "server 0.log").read_text().startswith("--- start 1 of server 0, ")


async def test_who_does_not_want_to_end_is_killed(make: Make) -> None:
    server = make("server 0", "--deaf", patience=Patience(ready=120.0, grace=0.2))
    await server.start(nothing)
    running = await pids(server.url)
    await server.stop()
    assert server.returncode == 128 + signal.SIGKILL and not any(map(alive, running))


async def test_a_start_that_fails_says_why(make: Make) -> None:
    server = make("server 3", "--fail", "7")
    with pytest.raises(
        EngineError,
        match=r"server 3 ended with code 7: it ran out of memory: lower memory_fraction.*; its last lines:\n"
        r"  .*Load weight begin.\n  RuntimeError: Not enough memory.*\n  \(all of it: .*/server 3.log\)",
    ):
        await server.start(nothing)


async def test_a_start_that_takes_too_long_says_where_it_stood(make: Make) -> None:
    server = make("server 0", "--slow", "60", patience=Patience(ready=1.5, every=0.1))
    with pytest.raises(EngineError, match=r"did not answer /health within 1.5 s; it last said: (Load weight|nothing)"):
        await server.start(nothing)
    assert server.returncode is not None


async def test_a_port_that_is_taken_is_said_at_once(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = make(port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match=r"port \d+ of 127.0.0.1 is taken"):
            await server.start(nothing)


async def test_an_end_is_noticed_and_leaves_nothing(make: Make) -> None:
    server = make()
    await server.start(nothing)
    running = await pids(server.url)
    lost = asyncio.create_task(server.lost())
    os.kill(running[0], signal.SIGKILL)
    assert (await lost).startswith("was ended by SIGKILL: that is what the system does")
    assert not any(map(alive, running))
    await server.start(nothing)  # at the same port
    assert (await pids(server.url))[0] != running[0]
    await server.stop()


async def test_a_hang_is_noticed(make: Make) -> None:
    server = make(patience=Patience(ready=120.0, answer=0.6, every=0.05, grace=0.2))
    await server.start(nothing)
    running = await pids(server.url)
    os.kill(running[0], signal.SIGSTOP)
    assert await server.lost() == "hangs: no answer for 0.6 s"
    await server.stop()
    assert server.returncode == 128 + signal.SIGKILL and not any(map(alive, running))


async def test_the_watcher_takes_its_program_with_it(make: Make) -> None:
    server = make()
    await server.start(nothing)
    running = await pids(server.url)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert (await server.lost()).startswith("ended with code -9") or server.returncode == -9
    assert await gone(running[0])
    for left in running[1:]:  # out of reach, now that nobody watches: SGLang's own look after themselves
        os.kill(left, signal.SIGKILL)


STARTER = """
import asyncio, os, sys, time
from pathlib import Path
from rl.inference.sglang.command import Command
from rl.inference.sglang.server import Launched, Patience

async def main():
    port, program, log = sys.argv[1:]
    command = Command((sys.executable, program, port), {})
    server = Launched("server 0", f"http://127.0.0.1:{port}", command, Path(log), Patience(120.0, grace=1.0))
    await server.start(lambda text: None)
    if os.fork() == 0:
        time.sleep(600)  # whoever is forked off holds the pipe, too
    print("ready", os.getpid(), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_starter_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    port = take_ports(1, 0, "127.0.0.1")[0]
    program = Path(__file__).with_name("program.py")
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(port), str(program), str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert starter.stdout is not None
    assert await asyncio.to_thread(starter.stdout.readline) == f"ready {starter.pid}\n"
    running = await pids(f"http://127.0.0.1:{port}")
    starter.kill()
    assert await gone(*running)
    os.killpg(starter.pid, signal.SIGKILL)
    starter.stdout.close()
    starter.wait()


async def test_one_that_is_not_ours_is_waited_for_and_seen_to_go() -> None:
    port = take_ports(1, 0, "127.0.0.1")[0]
    server = Attached("http://127.0.0.1:1", f"http://127.0.0.1:{port}/", Patience(ready=60.0, answer=20.0, every=0.05))
    told = list[str]()
    starting = asyncio.create_task(server.start(told.append))
    await until(lambda: told)
    app = web.Application()

    async def yes(request: web.Request) -> web.Response:
        return web.Response()

    app.router.add_get("/{any}", yes)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await starting
    assert told == ["waiting for http://127.0.0.1:1", "http://127.0.0.1:1 answers"]
    lost = asyncio.create_task(server.lost())
    await asyncio.sleep(0.2)
    assert not lost.done()
    await runner.cleanup()
    assert await lost == "is gone: connections fail"


async def test_one_that_nobody_started_is_named() -> None:
    server = Attached("http://127.0.0.1:1", "http://127.0.0.1:1", Patience(ready=0.2, every=0.05))
    with pytest.raises(EngineError, match=r"did not answer /server_info within 0.2 s; expected an SGLang server there"):
        await server.start(nothing)
