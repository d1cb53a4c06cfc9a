"""What a rollout costs beside the model: CPU of the client's process, against a server that answers at once.

    python benchmarks/rollout_overhead.py [--append] [--rollouts 1000] [--concurrency 256] [--rounds 7]
    python benchmarks/rollout_overhead.py --peer verifiers --readme     beside verifiers (make peer-verifiers)
    python benchmarks/rollout_overhead.py --many 4000                   many at once, against a server that takes 1 s

The server (`peers/instant_server.py`) runs in a process of its own. Each rollout is a full one: `evaluate` through
`OpenAIClient`, seeds derived, a `Trajectory` with tokens and log-probabilities recorded and appended to a journal on
disk, a rubric of one reward and one metric. Every round runs the contestants one after the other; reported is the
median of the rounds.

The last line is a JSON object with these keys:
    single.cpu_ms_per_rollout, single.rollouts_per_s    one question, one answer
    tool.cpu_ms_per_rollout, tool.rollouts_per_s        three turns, two of them with a call of a tool
    bare.cpu_ms_per_rollout, bare.rollouts_per_s        a bare aiohttp loop that posts the same bytes, parses the JSON
    SCENARIO.verifiers.…                                the same, by the peer; `cpu_ratio`: its CPU time over ours
    many.seconds_over_ideal, many.cpu_ms_per_rollout    how much longer than the latency that many rollouts at once took
    many.kb_per_idle_rollout                            resident memory of one that waits for the server
    rollouts, concurrency, rounds, load_1m, machine, versions
"""

import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import aiohttp

from benchmarks.common import README, arguments, emit, machine, provenance, run, versions, write_block
from benchmarks.peers import SCRIPTS, Peer, Round, environments, interleave
from benchmarks.peers.instant_server import ANSWER, LATENCY, QUESTION, raise_files
from envs import Environment, Journal, OpenAIClient, Rubric, Sampling, Task, Taskset, evaluate, single_turn, tool_use
from envs.clients.openai_wire import encode
from envs.errors import ConfigError

SAMPLING = Sampling(max_tokens=64, seed=0)
EXTRA = {"return_token_ids": True, "logprobs": True}
BARS = {"single": 0.7, "tool": 2.0}  # ms of CPU
TITLES = {"single": "single turn", "tool": "three turns with a tool"}


def correct(completion: str, answer: str) -> float:
    return float(completion.strip() == answer)


def length(completion: str) -> float:
    return float(len(completion))


async def lookup(word: str) -> str:
    """Look a word up.

    Args:
        word: the word.
    """
    return f"{word}: an animal"


def environment(scenario: str, rollouts: int) -> Environment:
    tasks = Taskset.from_function(lambda split: [Task.ask(f"{split}-{i}", QUESTION, ANSWER) for i in range(rollouts)])
    harness = tool_use([lookup], max_turns=4) if scenario == "tool" else single_turn()
    return Environment(tasks, harness, Rubric({correct: 1.0, length: 0.0}))


async def roll(scenario: str, url: str, rollouts: int, concurrency: int) -> None:
    """The rollouts as a user would run them; every one must have earned its reward, and have its tokens."""
    client = OpenAIClient(url, "instant", api_key="", max_connections=concurrency, extra_body=EXTRA)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "rollouts.jsonl") as journal:
        evaluation = await evaluate(
            environment(scenario, rollouts),
            client,
            sampling=SAMPLING,
            concurrency=concurrency,
            on_trajectory=journal.append,
        )
    await client.close()
    turns = 3 if scenario == "tool" else 1
    for trajectory in evaluation.trajectories:
        assert trajectory.reward == 1.0 and len(trajectory.turns) == turns, trajectory
        assert all(len(turn.completion.logprobs or ()) == 20 for turn in trajectory.turns)


async def bare(url: str, rollouts: int, concurrency: int) -> None:
    """The floor: the same posts over the same number of connections, with nothing recorded."""
    body = encode("instant", [{"role": "user", "content": QUESTION}], (), SAMPLING, EXTRA)
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


def measured(scenario: str, url: str, rollouts: int, concurrency: int) -> Round:
    """One round of a scenario; its "tokens" are the rollouts."""
    wall, cpu = time.perf_counter(), time.process_time()
    if scenario == "bare":
        asyncio.run(bare(url, rollouts, concurrency))
    else:
        asyncio.run(roll(scenario, url, rollouts, concurrency))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Round(wall, cpu, rollouts)


def many(url: str, rollouts: int) -> dict[str, float]:
    """That many rollouts at once against the slow server, in a process that has done nothing else."""
    asyncio.run(roll("single", url, 10, 10))  # imports, and what is made once

    async def main() -> float:
        before, task = resident_kb(), asyncio.ensure_future(roll("single", f"{url[:-3]}/slow/v1", rollouts, rollouts))
        most, held = 0, 0.0
        async with aiohttp.ClientSession() as session:
            while not task.done():
                async with session.get(f"{url[:-3]}/waiting") as response:
                    if (waiting := int(await response.text())) > most:
                        most, held = waiting, (resident_kb() - before) / waiting
                await asyncio.sleep(0.2)
        await task
        return held

    wall, cpu = time.perf_counter(), time.process_time()
    held = asyncio.run(main())
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "seconds_over_ideal": round(wall - LATENCY, 2),
        "cpu_ms_per_rollout": round(1000 * cpu / rollouts, 4),
        "kb_per_idle_rollout": round(held, 1),
        "rollouts": rollouts,
    }


def resident_kb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024


@contextmanager
def server() -> Iterator[str]:
    """The instant server, and its URL."""
    command = [sys.executable, str(SCRIPTS / "instant_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.stdin.close()


def overhead(url: str, peers: dict[str, Path | None], rollouts: int, concurrency: int, rounds: int) -> dict[str, Any]:
    """All scenarios, ours and the peers' in turns."""
    job = {"url": url, "rollouts": rollouts, "concurrency": concurrency, "question": QUESTION, "answer": ANSWER}
    others = {
        f"{scenario}.{name}": Peer(name, SCRIPTS / f"{name}_rollout.py", {**job, "scenario": scenario}, folder)
        for name, folder in peers.items()
        for scenario in BARS
    }
    ours = {s: lambda _, s=s: measured(s, url, rollouts, concurrency) for s in ("bare", *BARS)}
    for play in ours.values():
        play(0)  # warms up
    played = interleave({**ours, **{name: other.play for name, other in others.items()}}, rounds)
    result: dict[str, Any] = {}
    for name, times in played.items():
        result[f"{name}.cpu_ms_per_rollout"] = round(1000 * statistics.median(r.cpu_s / r.tokens for r in times), 4)
        result[f"{name}.rollouts_per_s"] = round(statistics.median(r.tokens / r.wall_s for r in times), 1)
        if name in others:
            mine = played[name.partition(".")[0]]
            ratios = [theirs.cpu_s / us.cpu_s for theirs, us in zip(times, mine, strict=True)]
            result[f"{name}.cpu_ratio"] = round(statistics.median(ratios), 1)
            result[f"{name}.versions"] = others[name].versions
    for other in others.values():
        other.close()
    return result


def table(result: dict[str, Any], peers: list[str]) -> str:
    """The README's table."""
    heads = "".join(f" {peer}, CPU ms | {peer}, rollouts/s | CPU ratio |" for peer in peers)
    lines = [f"| rollout | CPU ms | bar | rollouts/s |{heads}", "|---" * (4 + 3 * len(peers)) + "|"]
    for scenario, bar in BARS.items():
        mine = (
            f"| {result[f'{scenario}.cpu_ms_per_rollout']:.2f} | {bar} | {result[f'{scenario}.rollouts_per_s']:,.0f} |"
        )
        theirs = "".join(
            f" {result[f'{key}.cpu_ms_per_rollout']:.1f} | {result[f'{key}.rollouts_per_s']:,.0f} "
            f"| **{result[f'{key}.cpu_ratio']:.0f}** |"
            for key in (f"{scenario}.{peer}" for peer in peers)
        )
        lines.append(f"| {TITLES[scenario]} {mine}{theirs}")
    lines.append("")
    lines.append(
        f"{result['many.rollouts']:,} single turns at once, against a server that takes {LATENCY:g} s: "
        f"{result['many.seconds_over_ideal']:.2f} s longer than that (bar 3.5), "
        f"{result['many.cpu_ms_per_rollout']:.2f} ms of CPU each (bar 0.9), "
        f"{result['many.kb_per_idle_rollout']:.0f} KB each while they wait (bar 30)."
    )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--many", type=int, default=4000, help="rollouts at once against the slow server")
    parser.add_argument("--peer", type=environments, default={}, help="NAME[=FOLDER],…: verifiers")
    parser.add_argument("--readme", action="store_true", help="write the table into benchmarks/README.md")
    parser.add_argument("--only-many", metavar="URL", help="measure that alone, against this server")
    given = parser.parse_args()
    if unknown := set(given.peer) - {"verifiers"}:
        raise ConfigError(f"peer {', '.join(sorted(unknown))} is not known; expected verifiers")
    raise_files()
    if given.only_many:
        print(json.dumps(many(given.only_many, given.many)))
        return
    load = round(os.getloadavg()[0], 1)
    with server() as url:
        result = overhead(url, given.peer, given.rollouts, given.concurrency, given.rounds)
        command = [sys.executable, __file__, "--only-many", url, "--many", str(given.many)]
        alone = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result |= {f"many.{name}": value for name, value in json.loads(alone).items()}
    parameters = {"rollouts": given.rollouts, "concurrency": given.concurrency, "rounds": given.rounds}
    result |= {**parameters, "load_1m": load, "machine": machine(), "versions": versions("upswing", "aiohttp")}
    if given.readme:
        write_block(README, "rollout", f"{table(result, list(given.peer))}\n\n{provenance(result)}")
    emit("rollout_overhead", result, given.append)


if __name__ == "__main__":
    run(main)
