"""SGLang's router in front of servers that the fleet lets in and takes out. The servers are stand-ins: it does not
matter to a router what answers, and two of the real ones would take a minute to start."""

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import aiohttp
import psutil
from server_processes import LONG_S, pids, until

from rl.inference.sglang.command import Command, router_command
from rl.inference.sglang.fleet import Fleet, Route
from rl.inference.sglang.ports import take_ports
from rl.inference.sglang.router import LIVE, Router
from rl.inference.sglang.server import Launched, Patience

PROGRAM = Path(__file__).parents[1] / "inference" / "sglang" / "program.py"
QUICK = Patience(ready=600.0, answer=120.0, every=0.1, grace=1.0)


async def answered_by(route: Route) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{route.url}/generate", json={"input_ids": [1]}, headers=route.headers) as reply,
    ):
        assert reply.status == 200, await reply.text()
        url: str = (await reply.json())["url"]
        return url


async def test_a_rollout_stays_with_its_server_and_moves_when_that_fails(python: Path, tmp_path: Path) -> None:
    *ports, port, metrics = take_ports(4, 0, "127.0.0.1")
    servers = [
        Launched(
            f"server {i}",
            f"http://127.0.0.1:{p}",
            Command((sys.executable, str(PROGRAM), str(p)), {}),
            tmp_path / f"{i}.log",
            QUICK,
        )
        for i, p in enumerate(ports)
    ]
    command = router_command(python, port=port, metrics_port=metrics)
    process = Launched(
        "the router", f"http://127.0.0.1:{port}", command, tmp_path / "router.log", QUICK, ready=LIVE, alive=LIVE
    )
    published, told = asyncio.Event(), list[str]()

    async def on_restart(url: str) -> None:
        await published.wait()

    fleet = Fleet(servers, router=Router(process), report=told.append, on_restart=on_restart)
    await fleet.start()
    try:
        keys = [f"rollout {i}" for i in range(16)]
        first = {key: await answered_by(await fleet.route(key)) for key in keys}
        assert set(Counter(first.values())) == set(fleet.urls)
        assert {key: await answered_by(await fleet.route(key)) for key in keys} == first

        failed, other = fleet.urls
        os.kill((await pids(failed))[0], signal.SIGKILL)
        async with asyncio.timeout(LONG_S):
            while failed in await known(process.url):
                await asyncio.sleep(0.05)
        assert {await answered_by(await fleet.route(key)) for key in keys} == {other}
        await pids_answer(failed)  # it is back, without its weights: nothing goes there
        assert {await answered_by(await fleet.route(f"new {i}")) for i in range(16)} == {other}
        published.set()
        await fleet.serving()
        assert {await answered_by(await fleet.route(f"newer {i}")) for i in range(32)} == {failed, other}

        assert process.pid is not None
        psutil.Process(process.pid).children()[0].kill()  # the router, too, comes back, and knows everybody
        await until(lambda: any(text.startswith("the router was ended by SIGKILL") for text in told))
        assert {await answered_by(await fleet.route(f"newest {i}")) for i in range(32)} == {failed, other}
    finally:
        await fleet.close()


async def known(router: str) -> set[str]:
    """The servers that a router sends requests to."""
    async with aiohttp.ClientSession() as session, session.get(f"{router}/workers") as reply:
        return {worker["url"] for worker in (await reply.json())["workers"]}


async def pids_answer(url: str) -> None:
    async with asyncio.timeout(LONG_S):
        while True:
            try:
                await pids(url)
                return
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
