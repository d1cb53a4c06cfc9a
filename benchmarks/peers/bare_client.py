"""Our client of SGLang's servers beside a bare one, which posts the same requests and does nothing with the answers."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from benchmarks.peers import Round
from rl.cli.build import Policy
from rl.cli.engine import open_engine
from rl.cli.export import write_directory
from rl.config import SglangInference
from rl.inference.engine import TokenSampling
from rl.inference.sglang.command import find_python, server_command
from rl.inference.sglang.ports import take_ports
from rl.inference.sglang.sampling import native
from rl.inference.sglang.server import Launched


async def played(policy: Policy, prompts: Sequence[Sequence[int]], new: int, rounds: int) -> dict[str, list[Round]]:
    """Rounds of our client ("ours") and of the bare one ("bare") in turns, at one real server.

    The CPU seconds are this process's; the server's are not among them. Both get the log-probability of every token.

    Args:
        policy: what the server samples from.
        prompts: one request each, all at once; a token in front makes those of a round new to the server's cache.
        new: tokens drawn for each.
        rounds: of each, after one that warms up.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        write_directory(folder / "model", policy, "float32")
        [port] = take_ports(1, 0, "127.0.0.1")
        url = f"http://127.0.0.1:{port}"
        server = Launched(
            "the server", url, server_command(find_python(), folder / "model", port=port), folder / "server.log"
        )
        await server.start(_note)
        try:
            config = SglangInference(urls=[url], context=len(prompts[0]) + 1 + new)
            async with open_engine(config, policy, folder, _note) as engine, aiohttp.ClientSession() as session:

                async def ours(number: int) -> int:
                    asked = (
                        engine.generate([number, *prompt], TokenSampling(max_tokens=new, seed=number))
                        for prompt in prompts
                    )
                    return sum(len(generation.ids) for generation in await asyncio.gather(*asked))

                async def one(number: int, prompt: Sequence[int]) -> int:
                    params = native(TokenSampling(max_tokens=new, seed=number), new, 0)
                    body = {"input_ids": [number, *prompt], "sampling_params": params, "return_logprob": True}
                    async with session.post(f"{url}/generate", json=body) as response:
                        return len((await response.json())["output_ids"])

                async def bare(number: int) -> int:
                    return sum(await asyncio.gather(*(one(number, prompt) for prompt in prompts)))

                contestants = {"ours": ours, "bare": bare}
                result: dict[str, list[Round]] = {name: [] for name in contestants}
                for number in range(2 * rounds + 2):
                    name = ("ours", "bare", "bare", "ours")[number % 4]
                    wall, cpu = time.perf_counter(), time.process_time()
                    tokens = await contestants[name](number)
                    done = Round(time.perf_counter() - wall, time.process_time() - cpu, tokens)
                    assert tokens == len(prompts) * new
                    if number >= 2:
                        result[name].append(done)
                return result
        finally:
            await server.stop()


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
