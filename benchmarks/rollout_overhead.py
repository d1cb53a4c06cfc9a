"""What a rollout costs beside the model: single-turn rollouts against a server that answers at once.

    python benchmarks/rollout_overhead.py [--append] [--rollouts 1000] [--concurrency 256] [--rounds 7]

The server (aiohttp, canned answer with usage) runs in a process of its own; CPU time is that of the client's process
alone. Each rollout is a full one: `run_task` through `OpenAIClient`, seeds derived, a `Trajectory` recorded, a rubric
of one reward and one metric. Every round runs the variants one after the other; reported is the median of the rounds.

The last line is a JSON object with these keys:
    single.cpu_ms_per_rollout, single.rollouts_per_s      `evaluate` with all of the above
    journal.cpu_ms_per_rollout, journal.rollouts_per_s    the same, each rollout also appended to a journal on disk
    bare.cpu_ms_per_rollout, bare.rollouts_per_s          a bare aiohttp loop that posts the same bytes, parses the JSON
    rollouts, concurrency, rounds, machine, versions      what was measured on
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import aiohttp

from benchmarks.common import arguments, emit, machine, versions
from envs import Environment, Journal, OpenAIClient, Rubric, Sampling, Task, Taskset, evaluate, single_turn
from envs.clients.openai_wire import encode

QUESTION = "Reverse this text, and write nothing else: the quick brown fox jumps over the lazy dog"
ANSWER = QUESTION.partition(": ")[2][::-1]
ANSWER_BODY = {
    "id": "chatcmpl-0",
    "object": "chat.completion",
    "created": 0,
    "model": "instant",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 30, "completion_tokens": 20, "total_tokens": 50},
}
SAMPLING = Sampling(max_tokens=64, seed=0)

Variant = Callable[[str, int, int], Awaitable[None]]


def correct(completion: str, answer: str) -> float:
    return float(completion.strip() == answer)


def length(completion: str) -> float:
    return float(len(completion))


def environment(rollouts: int) -> Environment:
    tasks = Taskset.from_function(lambda split: [Task.ask(f"{split}-{i}", QUESTION, ANSWER) for i in range(rollouts)])
    return Environment(tasks, single_turn(), Rubric({correct: 1.0, length: 0.0}))


async def single(url: str, rollouts: int, concurrency: int, journal: Journal | None = None) -> None:
    """The rollouts as a user would run them; every one must have earned its reward."""
    client = OpenAIClient(url, "instant", max_connections=concurrency)
    keep = None if journal is None else journal.append
    evaluation = await evaluate(
        environment(rollouts), client, sampling=SAMPLING, concurrency=concurrency, on_trajectory=keep
    )
    await client.close()
    rewards = [trajectory.reward for trajectory in evaluation.trajectories]
    assert rewards == [1.0] * rollouts, "a rollout failed"


async def journaled(url: str, rollouts: int, concurrency: int) -> None:
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "rollouts.jsonl") as journal:
        await single(url, rollouts, concurrency, journal)


async def bare(url: str, rollouts: int, concurrency: int) -> None:
    """The floor: the same posts over the same number of connections, with nothing recorded."""
    body = encode("instant", [{"role": "user", "content": QUESTION}], (), SAMPLING, {})
    headers = {"Content-Type": "application/json"}
    left = iter(range(rollouts))

    async def work(session: aiohttp.ClientSession) -> None:
        for _ in left:
            async with session.post(f"{url}/chat/completions", data=body, headers=headers) as response:
                answer = json.loads(await response.read())
                assert answer["choices"][0]["message"]["content"] == ANSWER

    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(work(session) for _ in range(concurrency)))


VARIANTS: dict[str, Variant] = {"bare": bare, "single": single, "journal": journaled}


def measure(variant: Variant, url: str, rollouts: int, concurrency: int) -> tuple[float, float]:
    """CPU milliseconds per rollout, and rollouts per second."""
    wall, cpu = time.perf_counter(), time.process_time()
    asyncio.run(variant(url, rollouts, concurrency))  # type: ignore[arg-type]
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return 1000 * cpu / rollouts, rollouts / wall


def serve() -> None:
    """The instant server; prints its port."""
    from aiohttp import web

    canned = json.dumps(ANSWER_BODY).encode()

    async def complete(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=canned, content_type="application/json")

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until the client's end of the pipe closes
        await runner.cleanup()

    asyncio.run(main())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", action="store_true", help="be the server")
    given = parser.parse_args()
    if given.serve:
        return serve()
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stdin is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
        for number in range(-1, given.rounds):  # the first round warms up
            for name, variant in VARIANTS.items():
                measured = measure(variant, url, given.rollouts, given.concurrency)
                if number >= 0:
                    rounds[name].append(measured)
                    print(f"round {number} {name:8} {measured[0]:.3f} ms CPU per rollout, {measured[1]:.0f} rollouts/s")
        server.stdin.close()
    result: dict[str, Any] = {}
    for name, measured_rounds in rounds.items():
        result[f"{name}.cpu_ms_per_rollout"] = round(statistics.median(cpu for cpu, _ in measured_rounds), 4)
        result[f"{name}.rollouts_per_s"] = round(statistics.median(rate for _, rate in measured_rounds), 1)
    parameters = {"rollouts": given.rollouts, "concurrency": given.concurrency, "rounds": given.rounds}
    result |= {**parameters, "machine": machine(), "versions": versions("aiohttp")}
    emit("rollout_overhead", result, given.append)


if __name__ == "__main__":
    main()
