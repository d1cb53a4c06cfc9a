"""How a peer's script speaks with the benchmark that started it. Runs in the peer's own environment: knows only numpy.

The script reads a job (one line of JSON), gets ready, says so, and then does one round per line it reads:

    <- {"prompts": 64, …}                                 the job
    -> {"ready_s": 9.1, "versions": {"torch": …}}         imported, built, and one round done to warm up
    <- {"round": 1}
    -> {"wall_s": 0.9, "cpu_s": 1.7, "tokens": 4096}
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Job = dict[str, Any]
Play = Callable[[int], int]
"""Does round number n and returns how many tokens it was for."""


def answer(begin: Callable[[Job], Play], packages: list[str], cpu: Callable[[], float] = time.process_time) -> None:
    """Serves rounds until its standard input ends.

    Args:
        begin: builds the model that the job describes.
        packages: whose versions to tell.
        cpu: CPU seconds used so far; other than this process's own where there is a server.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    started = time.perf_counter()
    play = begin(json.loads(sys.stdin.readline()))
    play(0)
    versions = {name: importlib.metadata.version(name) for name in packages}
    print(json.dumps({"ready_s": time.perf_counter() - started, "versions": versions}), file=replies, flush=True)
    for line in sys.stdin:
        number = json.loads(line)["round"]
        wall, used = time.perf_counter(), cpu()
        tokens = play(number)
        wall, used = time.perf_counter() - wall, cpu() - used
        print(json.dumps({"wall_s": wall, "cpu_s": used, "tokens": tokens}), file=replies, flush=True)


def prompts(job: Job, number: int) -> list[list[int]]:
    """The prompts of a round, all different: `job["prompts"]` of `job["prompt"]` tokens."""
    rng = np.random.default_rng(number)
    ids: list[list[int]] = rng.integers(0, job["shape"]["vocab_size"], (job["prompts"], job["prompt"])).tolist()
    return ids


def rollouts(job: Job, number: int) -> list[dict[str, Any]]:
    """What an update is for: `job["rollouts"]` sequences of a prompt and a completion, with random advantages.

    Where `job["lengths"]` is "full" all are as long as can be: `job["prompt"]` and `job["new"]` tokens. Where it is
    "uneven", prompts have between half as many and as many, and completions follow the log-normal that lengths of
    sampled answers roughly follow, with median `0.4 * job["new"]` and cut off at `job["new"]`.
    """
    rng = np.random.default_rng(number)
    longest, most, count = job["prompt"], job["new"], job["rollouts"]
    prompt, new = np.full(count, longest), np.full(count, most)
    if job["lengths"] == "uneven":
        prompt = rng.integers(longest // 2, longest + 1, count)
        new = np.clip(rng.lognormal(np.log(0.4 * most), 0.6, count), 4, most).astype(int)
    return [
        {
            "tokens": rng.integers(0, job["shape"]["vocab_size"], p + n).tolist(),
            "prompt": int(p),
            "logprobs": [-6.2] * int(n),
            "advantage": float(rng.normal()),
        }
        for p, n in zip(prompt, new, strict=True)
    ]
