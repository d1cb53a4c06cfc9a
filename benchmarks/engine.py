"""How fast the in-process engine samples, alone or beside others in the same run; what SGLang's client costs.

    python benchmarks/engine.py [--append] [--rounds 7]
    python benchmarks/engine.py --peer tunix,hf [--only small,groups] [--readme]
    python benchmarks/engine.py --engine sglang [--only small,smollm2] [--readme]

Alone: the workload `small`, plainly (temperature 1) and with top-p 0.9, in turns; reported is the median round.

    small       64 prompts of 32 tokens, one sample each; 4 layers of width 128, 4 heads (2 kv), ffn 384, 512 tokens
    groups      the same model; 4 prompts of 256 tokens, 16 samples each
    smollm2     the shape of SmolLM2-135M in float32; 16 prompts of 64 tokens, one sample each

All draw 64 new tokens per sample from random weights at temperature 1; prompts differ, and nothing stops early. With
`--peer` every workload is sampled in turns by the engine and by its peers: `tunix` (google-tunix's vanilla sampler),
`hf` (transformers' generate) and `sglang` (its server on the CPU). `make peers sglang` builds their environments;
`NAME=FOLDER` names another one. The engine returns log-probabilities with the tokens, the peers do without.

With `--engine sglang` (make sglang) 64 requests are in flight at one real server, in turns from our client and from a
bare aiohttp one that posts the same requests: of 32 tokens for `small`, of 64 for `smollm2`; 64 new ones each.

The last line is a JSON object with these keys:
    sampled_tokens_per_s, sampled_tokens_per_cpu_s, best_sampled_tokens_per_s      plain sampling
    top_p.sampled_tokens_per_s, top_p.sampled_tokens_per_cpu_s                     with top-p 0.9
    compile_s          the first round, which compiles
    recompilations     programs compiled after the first round of each kind
    peak_memory_mb     largest resident size of the process
    rounds, machine, versions
or, with peers, for every workload W and peer P:
    W.sampled_tokens_per_s, W.sampled_tokens_per_cpu_s, W.recompilations           the engine
    W.P.sampled_tokens_per_s, W.P.sampled_tokens_per_cpu_s                         the peer
    W.P.ratio, W.P.cpu_ratio     how many times as fast the engine is, by the clock and in CPU time
    W.P.bar                      the ratio it should have
    W.rounds, load_1m (others' load when it began, in cores), machine, versions, P.versions
or, with SGLang, for every workload W:
    W.client.sampled_tokens_per_s, W.bare.sampled_tokens_per_s
    W.client.overhead        by how much longer a round takes than the bare client's, as a share of that: the median
    W.client.cpu_share       CPU seconds of our process over the round's wall time; W.bare.cpu_share likewise
    W.client.bar             what the overhead should stay under
    W.rounds, load_1m, machine, versions
"""

import asyncio
import os
import resource
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax

from benchmarks.common import README, arguments, emit, machine, provenance, run, versions, write_block
from benchmarks.peers import (
    SCRIPTS,
    Peer,
    Round,
    bare_client,
    cpu_ratio,
    environments,
    interleave,
    ratio,
    tokens_per_cpu_s,
    tokens_per_s,
)
from benchmarks.peers.protocol import prompts
from envs.errors import ConfigError
from rl.cli.build import make_policy
from rl.config import HardwareConfig, ModelConfig
from rl.inference.engine import TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.metrics import CompileCounter
from rl.models.base import DecoderConfig
from rl.models.llama import build

ENVIRONMENTS = {"tunix": "tunix", "hf": "torch", "sglang": "sglang"}
TITLES = {"tunix": "google-tunix, vanilla sampler", "hf": "transformers, generate", "sglang": "SGLang, CPU server"}


class Workload(NamedTuple):
    """What is sampled, and how many times as fast as each peer the engine should be."""

    title: str
    shape: DecoderConfig
    prompts: int
    group: int
    prompt: int
    new: int
    rounds: int
    bars: dict[str, float]

    def job(self) -> dict[str, Any]:
        """What the engine and the peers do."""
        shape = {**asdict(self.shape), "rope_theta": self.shape.ropes[0].theta}
        del shape["ropes"]
        return {"shape": shape, "prompts": self.prompts, "group": self.group, "prompt": self.prompt, "new": self.new}


def _small(context: int) -> DecoderConfig:
    return DecoderConfig(vocab_size=512, layers=4, width=128, heads=4, kv_heads=2, ffn=384, context=context)


SMOLLM2 = DecoderConfig(vocab_size=49152, layers=30, width=576, heads=9, kv_heads=3, ffn=1536, context=128)
WORKLOADS = {
    "small": Workload("4 layers, width 128; 64 prompts of 32", _small(96), 64, 1, 32, 64, 7, {"tunix": 2.2, "hf": 2.0}),
    "groups": Workload("the same; 4 prompts of 256, 16 samples each", _small(320), 4, 16, 256, 64, 5, {"tunix": 4.0}),
    "smollm2": Workload(
        "SmolLM2-135M, float32; 16 prompts of 64", SMOLLM2, 16, 1, 64, 64, 3, {"hf": 1.3, "sglang": 2.5}
    ),
}


class Contestant:
    """The engine, set up for one workload."""

    def __init__(self, work: Workload) -> None:
        self._work = work
        self._job = work.job()
        self._loop = asyncio.new_event_loop()
        model = build(work.shape)
        params = jax.jit(model.init)(jax.random.key(0))
        self._engine = JaxEngine(model, params, slots=work.prompts * work.group)

    def play(self, number: int, top_p: float = 1.0) -> Round:
        """One round: every sample a request of its own, all at once."""
        repeated = [prompt for prompt in prompts(self._job, number) for _ in range(self._work.group)]
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = self._loop.run_until_complete(self._sample(repeated, number, top_p))
        return Round(time.perf_counter() - wall, time.process_time() - cpu, tokens)

    async def _sample(self, requests: list[list[int]], number: int, top_p: float) -> int:
        seeds = range(number * len(requests), (number + 1) * len(requests))
        done = await asyncio.gather(
            *(
                self._engine.generate(ids, TokenSampling(top_p=top_p, max_tokens=self._work.new, seed=seed))
                for ids, seed in zip(requests, seeds, strict=True)
            )
        )
        tokens = sum(len(generation.ids) for generation in done)
        assert tokens == len(requests) * self._work.new
        return tokens

    def close(self) -> None:
        self._loop.run_until_complete(self._engine.close())
        self._loop.close()


def alone(rounds: int) -> dict[str, Any]:
    """The result without peers."""
    counter = CompileCounter()
    engine = Contestant(WORKLOADS["small"])
    compile_s = engine.play(0).wall_s
    engine.play(0, top_p=0.9)
    compiled = counter.count
    played = interleave({"": engine.play, "top_p.": lambda number: engine.play(number, top_p=0.9)}, rounds)
    engine.close()
    result: dict[str, Any] = {"best_sampled_tokens_per_s": round(max(r.tokens / r.wall_s for r in played[""]))}
    for name, times in played.items():
        result[f"{name}sampled_tokens_per_s"] = round(tokens_per_s(times))
        result[f"{name}sampled_tokens_per_cpu_s"] = round(tokens_per_cpu_s(times))
    return result | {
        "compile_s": round(compile_s, 1),
        "recompilations": counter.count - compiled,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rounds": rounds,
    }


def beside(name: str, peers: dict[str, Path | None], rounds: int | None) -> dict[str, Any]:
    """One workload, sampled in turns by the engine and those of `peers` that have a bar for it."""
    work = WORKLOADS[name]
    peers = {peer: folder for peer, folder in peers.items() if peer in work.bars}
    if not peers:
        return {}
    others = {p: Peer(ENVIRONMENTS[p], SCRIPTS / f"{p}_sample.py", work.job(), folder) for p, folder in peers.items()}
    engine = Contestant(work)
    engine.play(0)
    counter = CompileCounter()
    rounds = work.rounds if rounds is None else rounds
    played = interleave({"": engine.play, **{peer: other.play for peer, other in others.items()}}, rounds)
    result: dict[str, Any] = {f"{name}.recompilations": counter.count, f"{name}.rounds": rounds}
    for peer, times in played.items():
        prefix = f"{name}.{peer}." if peer else f"{name}."
        result[f"{prefix}sampled_tokens_per_s"] = round(tokens_per_s(times))
        result[f"{prefix}sampled_tokens_per_cpu_s"] = round(tokens_per_cpu_s(times))
        if peer:
            result[f"{prefix}ratio"] = round(ratio(played[""], times), 2)
            result[f"{prefix}cpu_ratio"] = round(cpu_ratio(played[""], times), 2)
            result[f"{prefix}bar"] = work.bars[peer]
            result[f"{peer}.versions"] = others[peer].versions
    for contestant in (engine, *others.values()):
        contestant.close()
    return result


IN_FLIGHT, CLIENT_BAR = 64, 0.03
CLIENT_WORKLOADS = ("small", "smollm2")


def client(name: str, rounds: int) -> dict[str, Any]:
    """One workload, asked of a real SGLang server by our client and by a bare one."""
    work = WORKLOADS[name]
    shape = work.shape
    model = ModelConfig(
        name="llama",
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        ffn=shape.ffn,
        context=256,
        options={"vocab_size": shape.vocab_size},
    )
    asked = prompts({**work.job(), "prompts": IN_FLIGHT}, 0)
    played = asyncio.run(bare_client.played(make_policy(model, HardwareConfig(), 0), asked, work.new, rounds))
    result: dict[str, Any] = {f"{name}.rounds": rounds}
    for key, who in (("client", "ours"), ("bare", "bare")):
        result[f"{name}.{key}.sampled_tokens_per_s"] = round(tokens_per_s(played[who]))
        shares = [one.cpu_s / one.wall_s for one in played[who]]
        result[f"{name}.{key}.cpu_share"] = round(statistics.median(shares), 4)
    # `ratio` is of speeds, ours over the bare client's.
    result[f"{name}.client.overhead"] = round(1 / ratio(played["ours"], played["bare"]) - 1, 4)
    result[f"{name}.client.bar"] = CLIENT_BAR
    return result


def client_table(result: dict[str, Any]) -> str:
    """The README's table of what the client costs."""
    lines = [
        "| model | our client, tokens/s | bare client | overhead | CPU share of our process | of the bare one | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in CLIENT_WORKLOADS:
        key = f"{name}.client."
        if f"{key}overhead" in result:
            cells = [
                WORKLOADS[name].title.split(";")[0],
                f"{result[f'{key}sampled_tokens_per_s']:,}",
                f"{result[f'{name}.bare.sampled_tokens_per_s']:,}",
                f"**{result[f'{key}overhead']:+.1%}**",
                f"{result[f'{key}cpu_share']:.1%}",
                f"{result[f'{name}.bare.cpu_share']:.1%}",
                f"{result[f'{key}bar']:.0%}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table(result: dict[str, Any]) -> str:
    """The README's table."""
    lines = [
        "| workload | peer | Upswing, tokens/s | peer, tokens/s | ratio | in CPU time | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, work in WORKLOADS.items():
        for peer, bar in work.bars.items():
            key = f"{name}.{peer}."
            if f"{key}ratio" in result:
                lines.append(
                    f"| {work.title} | {TITLES[peer]} | {result[f'{name}.sampled_tokens_per_s']:,} "
                    f"| {result[f'{key}sampled_tokens_per_s']:,} | **{result[f'{key}ratio']:.2f}** "
                    f"| {result[f'{key}cpu_ratio']:.2f} | {bar} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="7 alone; beside peers each workload has its own number")
    parser.add_argument("--peer", type=environments, default={}, help="NAME[=FOLDER],…: tunix, hf, sglang")
    parser.add_argument("--engine", choices=("jax", "sglang"), default="jax", help="sglang: what its client costs")
    parser.add_argument("--only", help="workloads to measure beside peers, or with sglang; all that there are")
    parser.add_argument("--readme", action="store_true", help="write the table into benchmarks/README.md")
    options = parser.parse_args()
    if unknown := set(options.peer) - set(ENVIRONMENTS):
        raise ConfigError(f"peer {', '.join(sorted(unknown))} is not known; expected some of {', '.join(ENVIRONMENTS)}")
    jax.config.update("jax_platforms", "cpu")
    load = round(os.getloadavg()[0], 1)
    result: dict[str, Any] = {"load_1m": load}
    chosen = options.only.split(",") if options.only else None
    if options.engine == "sglang":
        for name in chosen or CLIENT_WORKLOADS:
            result |= client(name, options.rounds or 9)
    elif options.peer:
        for name in chosen or WORKLOADS:
            result |= beside(name, options.peer, options.rounds)
    else:
        result = alone(options.rounds or 7)
    result |= {"machine": machine(), "versions": versions("upswing", "jax", "jaxlib", "flax")}
    if options.engine == "sglang":
        block, text = "engine_client", client_table(result)
    else:
        block, text = "engine", table(result)
    if options.readme:
        write_block(README, block, f"{text}\n\n{provenance(result)}")
    emit(block if options.engine == "sglang" else "engine_peers" if options.peer else "engine", result, options.append)


if __name__ == "__main__":
    run(main)
