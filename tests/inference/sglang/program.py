"""A program that behaves as a server does that is started and watched; it needs no SGLang.

    program.py PORT [--fail CODE] [--slow SECONDS] [--after FILE] [--deaf]

It has a child, which has another one in a session of its own, as far from the program's own group as can be. It says
the ids of all of them at /server_info, and at /generate where it listens. With --fail it ends at once, with --slow it
answers after a while, with --after once there is such a file, with --deaf it takes no notice of SIGTERM.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from aiohttp import web

CHILD = """
import subprocess, sys, time
far = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
print(far.pid, flush=True)
time.sleep(600)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--fail", type=int)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--after", type=Path)
    parser.add_argument("--deaf", action="store_true")
    given = parser.parse_args()
    print("[2026-11-24 17:51:37] Load weight begin.", flush=True)
    if given.fail is not None:
        print("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", flush=True)
        sys.exit(given.fail)
    near = subprocess.Popen([sys.executable, "-S", "-c", CHILD], stdout=subprocess.PIPE, text=True)
    assert near.stdout is not None
    pids = [os.getpid(), near.pid, int(near.stdout.readline())]
    ready = time.monotonic() + given.slow

    async def health(request: web.Request) -> web.Response:
        healthy = time.monotonic() >= ready and (given.after is None or given.after.exists())
        return web.Response(status=200 if healthy else 503)

    async def info(request: web.Request) -> web.Response:
        return web.json_response(
            {"pids": pids, "model_path": "tiny", "served_model_name": "tiny", "is_generation": True}
        )

    async def generate(request: web.Request) -> web.Response:
        return web.json_response({"url": f"http://127.0.0.1:{given.port}"})

    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_get("/server_info", info)
    app.router.add_get("/model_info", info)
    app.router.add_post("/generate", generate)

    async def serve() -> None:
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", given.port).start()
        if given.deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        await asyncio.sleep(600)

    asyncio.run(serve())


if __name__ == "__main__":
    main()
