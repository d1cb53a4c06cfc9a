"""Real servers as processes: what becomes of them on good and on bad days."""

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from real_servers import program
from server_processes import LONG_S, gone, until

from rl.inference.engine import EngineError
from rl.inference.sglang.command import server_command
from rl.inference.sglang.fleet import Fleet
from rl.inference.sglang.ports import take_ports
from rl.inference.sglang.server import ALIVE, READY, Launched, Patience


async def post(url: str, path: str, **body: Any) -> Any:
    async with aiohttp.ClientSession() as session, session.post(url + path, json=body) as reply:
        assert reply.status == 200, await reply.text()
        return await reply.json()


async def status(url: str, timeout: float = 60.0) -> int | None:
    """What it answers, if it does in time."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout)) as session,
            session.get(url) as reply,
        ):
            return reply.status
    except TimeoutError:
        return None


async def draw(url: str, tokens: int) -> list[int]:
    sampling = {"temperature": 1.0, "max_new_tokens": tokens, "ignore_eos": True}
    ids: list[int] = (await post(url, "/generate", input_ids=[1, 2, 3], sampling_params=sampling))["output_ids"]
    return ids


async def draw_on(url: str) -> None:
    """One completion after another, so that one is under way, until the server is gone."""
    while True:
        await draw(url, 200)


async def until_drawing(url: str) -> None:
    async with asyncio.timeout(LONG_S), aiohttp.ClientSession() as session:
        while True:
            async with session.get(url + "/v1/loads") as reply:
                if (await reply.json())["loads"][0]["num_running_reqs"]:
                    return
            await asyncio.sleep(0.02)


def family(server: Launched) -> dict[str, psutil.Process]:
    """The server and its processes, by what they are called."""
    found = {"main": program(server.pid)}
    for process in found["main"].children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a passing one
            found[process.name().split("::")[-1][:8]] = process
    return found


async def test_a_fleet_tells_what_is_paused_from_what_hangs_and_replaces_what_is_killed(
    python: Path, model_folder: Path, tmp_path: Path
) -> None:
    (port,) = take_ports(1, 0, "127.0.0.1")
    command = server_command(python, model_folder, port=port, arguments={"weight-version": "7"})
    url, patience = f"http://127.0.0.1:{port}", Patience(answer=40.0, every=0.5)
    server, told, given = Launched("server 0", url, command, tmp_path / "log", patience), list[str](), list[str]()

    async def on_restart(url: str) -> None:
        assert await status(url + READY) == 200
        await post(url, "/update_weight_version", new_version="8", abort_all_requests=False)
        given.append(url)

    fleet = Fleet([server], report=told.append, on_restart=on_restart)
    await fleet.start()
    try:
        assert any(text.startswith("server 0, ") for text in told), told  # of its log, while one waits
        assert any(text.startswith("server 0 is ready after ") for text in told), told
        await post(url, "/pause_generation", mode="in_place")
        assert await status(url + ALIVE) == 200
        await post(url, "/continue_generation")
        assert await status(url + READY) == 200 and fleet.is_serving(url)

        first = family(server)
        drawing = [asyncio.create_task(draw_on(url)) for _ in range(8)]
        await until_drawing(url)
        first["main"].kill()  # while it generates
        drawn = await asyncio.gather(*drawing, return_exceptions=True)
        assert all(isinstance(each, aiohttp.ClientError) for each in drawn), drawn
        await until(lambda: not fleet.is_serving(url))
        assert await gone(*(p.pid for p in first.values()))
        assert (await fleet.route("a")).url == url
        assert given == [url] and (await model_info(url))["weight_version"] == "8"
        assert len(await draw(url, 5)) == 5

        second = family(server)
        second["schedule"].suspend()  # the rest of it still answers, but for what asks the scheduler
        await until(lambda: not fleet.is_serving(url))
        assert (await fleet.route("a")).url == url
        assert given == [url, url] and await gone(*(p.pid for p in second.values()))
        assert len(await draw(url, 5)) == 5 and fleet.restarts == 2
        third = family(server)
    finally:
        await fleet.close()
    assert any("server 0 hangs: no answer for 40 s" in text for text in told), told
    assert await gone(*(p.pid for p in third.values()))


async def model_info(url: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/model_info") as reply:
        found: dict[str, Any] = await reply.json()
        return found


async def test_a_model_it_does_not_know_is_explained(python: Path, model_folder: Path, tmp_path: Path) -> None:
    wrong = shutil.copytree(model_folder, tmp_path / "wrong")
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps({**config, "architectures": ["FooForCausalLM"], "model_type": "foo"}))
    (port,) = take_ports(1, 0, "127.0.0.1")
    command = server_command(python, wrong, port=port)
    server = Launched("server 0", f"http://127.0.0.1:{port}", command, tmp_path / "log")
    with pytest.raises(EngineError, match="server 0 ended with code 1: this SGLang has no such model; its last lines:"):
        await server.start(print)


STARTER = """
import asyncio, json, sys
from pathlib import Path
from rl.inference.sglang.command import Command
from rl.inference.sglang.server import Launched

async def main():
    url, argv, settings, log = json.loads(sys.argv[1])
    server = Launched("server 0", url, Command(tuple(argv), settings), Path(log))
    await server.start(lambda text: None)
    print(server.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_killed_trainer_leaves_nothing_behind(python: Path, model_folder: Path, tmp_path: Path) -> None:
    (port,) = take_ports(1, 0, "127.0.0.1")
    url, command = f"http://127.0.0.1:{port}", server_command(python, model_folder, port=port)
    told = json.dumps([url, command.argv, dict(command.settings), str(tmp_path / "log")])
    trainer = subprocess.Popen([sys.executable, "-c", STARTER, told], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    watcher = psutil.Process(int(await asyncio.to_thread(trainer.stdout.readline)))
    left = [watcher, *watcher.children(recursive=True)]
    assert len(left) >= 4  # what watches, the server, its scheduler, its detokenizer
    drawing = asyncio.create_task(draw_on(url))
    await until_drawing(url)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    assert await gone(*(p.pid for p in left))
    with pytest.raises((aiohttp.ClientError, AssertionError)):  # AssertionError: it says that it ends
        await drawing
