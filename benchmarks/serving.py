"""What a request costs the server beside the tokens: the engine over HTTP, and the same engine in its own process.

    python benchmarks/serving.py [--append] [--requests 64] [--rounds 9]

All requests are sent at once: prompts of 32 tokens that differ, 32 new tokens each at temperature 1 with their
log-probabilities, from a model of 4 layers of width 128 with random weights, as many slots as requests. The client is a
process of its own; CPU time is that of the server's process, engine included. Every round goes through the variants
one after the other, so what the server adds is the median over the rounds of a difference within one round.

The last line is a JSON object with these keys:
    engine.cpu_ms_per_request, engine.requests_per_s        in process: `engine.generate`
    V.cpu_ms_per_request, V.requests_per_s                  over HTTP; V is generate, stream (native events) or chat
    V.added_cpu_ms_per_request, V.wall_ratio                what V adds to the engine, and its wall time over the engine
    requests, rounds, load_1m (others' load when it began), machine, versions
"""

import asyncio
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import aiohttp

from benchmarks.common import arguments, emit, machine, run, versions

PROMPT, NEW = 32, 32
CHAT_TEXT = "x" * (PROMPT - 3)  # a role and an end token around it, and the role that answers


def prompt(number: int) -> list[int]:
    return [(number * 31 + i * 7) % 256 for i in range(PROMPT)]


def body(variant: str, number: int) -> tuple[str, dict[str, Any]]:
    if variant == "chat":
        messages = [{"role": "user", "content": f"{number:03}{CHAT_TEXT[3:]}"}]
        common = {"max_tokens": NEW, "ignore_eos": True, "seed": number, "logprobs": True}
        return "/v1/chat/completions", {"messages": messages, **common}
    sampling = {"max_new_tokens": NEW, "ignore_eos": True, "sampling_seed": number}
    common = {"input_ids": prompt(number), "sampling_params": sampling, "return_logprob": True}
    return "/generate", {**common, "stream": variant == "stream"}


async def ask(url: str, requests: int) -> None:
    """The client's process: a variant per line of its input, a line once all of it was answered."""
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as http:

        async def one(variant: str, number: int) -> None:
            path, fields = body(variant, number)
            async with http.post(path, json=fields) as response:
                answer = await response.read()
                assert response.status == 200 and len(answer) > 1000, answer

        while line := await asyncio.to_thread(sys.stdin.readline):
            await asyncio.gather(*(one(line.strip(), number) for number in range(requests)))
            print("done", flush=True)


async def measure(requests: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """CPU seconds and wall seconds per round, by variant."""
    from envs.render import ByteRenderer
    from rl.cli.build import make_policy
    from rl.cli.engine import make_jax_engine
    from rl.config import HardwareConfig, JaxInference, ModelConfig
    from rl.inference.engine import TokenSampling
    from rl.inference.server.app import make_app
    from rl.inference.server.lifecycle import Server

    policy = make_policy(ModelConfig(name="llama"), HardwareConfig(), 0)
    engine = make_jax_engine(JaxInference(slots=requests), policy)
    server = await Server.start(make_app(engine, ByteRenderer(), model="tiny"))
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    command = [sys.executable, __file__, "--ask", server.url, "--requests", str(requests)]
    client = await asyncio.create_subprocess_exec(*command, **pipes)
    assert client.stdin is not None and client.stdout is not None

    async def in_process() -> None:
        await asyncio.gather(
            *(engine.generate(prompt(i), TokenSampling(max_tokens=NEW, seed=i)) for i in range(requests))
        )

    async def over_http(variant: str) -> None:
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write(f"{variant}\n".encode())
        assert await client.stdout.readline() == b"done\n"

    found: dict[str, list[tuple[float, float]]] = {"engine": [], "generate": [], "stream": [], "chat": []}
    for number in range(-2, rounds):  # the first two warm up
        for variant, times in found.items():
            cpu, wall = time.process_time(), time.perf_counter()
            await (in_process() if variant == "engine" else over_http(variant))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number >= 0:
                times.append((cpu, wall))
    client.stdin.close()
    await client.wait()
    await server.stop()
    await engine.close()
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ask", metavar="URL", help="be the client")
    given = parser.parse_args()
    if given.ask:
        return asyncio.run(ask(given.ask, given.requests))
    load = os.getloadavg()[0]
    found = asyncio.run(measure(given.requests, given.rounds))
    result: dict[str, Any] = {}
    for variant, times in found.items():
        result[f"{variant}.cpu_ms_per_request"] = round(
            1000 * statistics.median(c for c, _ in times) / given.requests, 3
        )
        result[f"{variant}.requests_per_s"] = round(given.requests / statistics.median(w for _, w in times), 1)
        if variant != "engine":
            both = list(zip(times, found["engine"], strict=True))
            added = statistics.median(own - alone for (own, _), (alone, _) in both)
            result[f"{variant}.added_cpu_ms_per_request"] = round(1000 * added / given.requests, 3)
            result[f"{variant}.wall_ratio"] = round(statistics.median(own / alone for (_, own), (_, alone) in both), 3)
    parameters = {"requests": given.requests, "rounds": given.rounds, "load_1m": round(load, 1)}
    emit(
        "serving", {**result, **parameters, "machine": machine(), "versions": versions("jax", "aiohttp")}, given.append
    )


if __name__ == "__main__":
    run(main)
