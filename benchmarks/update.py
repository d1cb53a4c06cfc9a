"""How fast an update is, alone or beside others in the same run: GRPO on 64 rollouts, everything included.

    python benchmarks/update.py [--append] [--rounds 7]
    python benchmarks/update.py --peer tunix,torch [--readme]

The model has 4 layers of width 128, 4 heads (2 kv), ffn 384 and 512 tokens; weights and tokens are random. An update is
the whole compiled program: forward, loss, backward, clipping, AdamW, metrics. Reported is the median over the rounds.
Sequences are of one of two kinds:

    full      prompts of 32, completions of 64 tokens, as full as rows of 96 can be
    uneven    prompts of 16 … 32, completions of 4 … 64 tokens, log-normal as sampled answers roughly are

With `--peer` updates on both are done in turns by Upswing and by its peers: `tunix` (google-tunix's GRPO train step)
and `torch` (transformers' Llama, AdamW; all rows at once, padded to the longest, and 16 at a time, sorted by length and
padded to the longest of the 16). `make peers` builds their environments; `NAME=FOLDER` names another.
What counts are tokens of sequences, never padding; laying them out (packing, padding) is part of the time.

The last line is a JSON object with these keys:
    trained_tokens_per_s, trained_tokens_per_cpu_s, best_trained_tokens_per_s     kind `full`
    compile_s          the first update, which compiles
    recompilations     programs compiled after it
    peak_memory_mb     largest resident size of the process
    rounds, machine, versions
or, with peers, for both kinds K and every peer P (tunix, torch_padded, torch_sorted):
    K.trained_tokens_per_s, K.trained_tokens_per_cpu_s, K.recompilations           Upswing
    K.P.trained_tokens_per_s, K.P.trained_tokens_per_cpu_s                         the peer
    K.P.ratio, K.P.cpu_ratio     how many times as fast Upswing is, by the clock and in CPU time
    K.P.bar                      the ratio it should have
    rounds, load_1m (the load when it began), machine, versions, P.versions
"""

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax

from benchmarks.common import README, arguments, emit, machine, provenance, run, versions, write_block
from benchmarks.peers import (
    SCRIPTS,
    Peer,
    Round,
    cpu_ratio,
    environments,
    interleave,
    ratio,
    tokens_per_cpu_s,
    tokens_per_s,
)
from benchmarks.peers.protocol import rollouts
from envs.errors import ConfigError
from rl.algorithms import grpo
from rl.data.pack import Segment, pack
from rl.metrics import CompileCounter
from rl.models.base import DecoderConfig
from rl.models.llama import build
from rl.trainer.optimizer import adamw
from rl.trainer.state import init_state
from rl.trainer.step import make_apply
from rl.trainer.update import make_score, make_update
from rl.types import Batch

ROLLOUTS, PROMPT, NEW = 64, 32, 64
MICROBATCH = 8  # what a core works on stays in its cache: 16 took about 5 % longer
SHAPE = DecoderConfig(vocab_size=512, layers=4, width=128, heads=4, kv_heads=2, ffn=384, context=PROMPT + NEW)
KINDS = {"full": "64 sequences of 96 tokens", "uneven": "64 sequences of 20 … 96 tokens"}
PEERS = {"tunix": ("tunix",), "torch": ("torch_padded", "torch_sorted")}
LAYOUTS = {
    "tunix": {"microbatch": ROLLOUTS},
    "torch_padded": {"microbatch": ROLLOUTS, "layout": "padded"},
    "torch_sorted": {"microbatch": 16, "layout": "sorted"},
}
BARS = {"tunix": 1.6, "torch_padded": 1.0, "torch_sorted": 1.0}
TITLES = {
    "tunix": "google-tunix, GRPO train step",
    "torch_padded": "torch, padded",
    "torch_sorted": "torch, sorted by length",
}


def job(kind: str) -> dict[str, Any]:
    """What an update is for."""
    shape = {**asdict(SHAPE), "rope_theta": SHAPE.ropes[0].theta}
    del shape["ropes"]
    return {"shape": shape, "rollouts": ROLLOUTS, "prompt": PROMPT, "new": NEW, "lengths": kind}


def batch(kind: str, number: int) -> Batch:
    """The sequences of a round, packed into rows."""
    parts = []
    for sequence in rollouts(job(kind), number):
        past, new = sequence["prompt"], len(sequence["logprobs"])
        mask, logprobs = [False] * past + [True] * new, [0.0] * past + sequence["logprobs"]
        parts.append(Segment(sequence["tokens"], mask, logprobs, sequence["advantage"], new))
    return pack(parts, PROMPT + NEW, MICROBATCH)


def updates(kind: str) -> Callable[[int], Round]:
    """Upswing's updates, one round after the other."""
    model, algorithm, optimizer = build(SHAPE), grpo(), adamw(steps=100)
    update = make_update(make_score(model), algorithm, optimizer, MICROBATCH)
    apply = make_apply(update, {**optimizer.hyper, **algorithm.hyper, "temperature": 1.0})
    state = init_state(jax.jit(model.init)(jax.random.key(0)), optimizer)

    def play(number: int) -> Round:
        nonlocal state
        wall, cpu = time.perf_counter(), time.process_time()
        arrays = batch(kind, number)
        state, metrics = apply(state, arrays)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert not metrics["nonfinite"]
        return Round(wall, cpu, int((arrays.segment_ids > 0).sum()))

    return play


def alone(rounds: int) -> dict[str, Any]:
    """The result without peers."""
    counter = CompileCounter()
    play = updates("full")
    compile_s, compiled = play(0).wall_s, counter.count
    times = interleave({"": play}, rounds)[""]
    return {
        "trained_tokens_per_s": round(tokens_per_s(times)),
        "trained_tokens_per_cpu_s": round(tokens_per_cpu_s(times)),
        "best_trained_tokens_per_s": round(max(r.tokens / r.wall_s for r in times)),
        "compile_s": round(compile_s, 1),
        "recompilations": counter.count - compiled,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rounds": rounds,
    }


def beside(kind: str, peers: dict[str, Path | None], rounds: int) -> dict[str, Any]:
    """Updates on one kind of sequences, in turns."""
    others = {
        layout: Peer(name, SCRIPTS / f"{name}_update.py", {**job(kind), **LAYOUTS[layout]}, folder)
        for name, folder in peers.items()
        for layout in PEERS[name]
    }
    play = updates(kind)
    play(0)
    counter = CompileCounter()
    played = interleave({"": play, **{peer: other.play for peer, other in others.items()}}, rounds)
    result: dict[str, Any] = {f"{kind}.recompilations": counter.count}
    for peer, times in played.items():
        prefix = f"{kind}.{peer}." if peer else f"{kind}."
        result[f"{prefix}trained_tokens_per_s"] = round(tokens_per_s(times))
        result[f"{prefix}trained_tokens_per_cpu_s"] = round(tokens_per_cpu_s(times))
        if peer:
            result[f"{prefix}ratio"] = round(ratio(played[""], times), 2)
            result[f"{prefix}cpu_ratio"] = round(cpu_ratio(played[""], times), 2)
            result[f"{prefix}bar"] = BARS[peer]
            result[f"{peer}.versions"] = others[peer].versions
    for other in others.values():
        other.close()
    return result


def table(result: dict[str, Any]) -> str:
    """The README's table."""
    lines = [
        "| sequences | peer | Upswing, tokens/s | peer, tokens/s | ratio | in CPU time | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, title in KINDS.items():
        for peer, bar in BARS.items():
            key = f"{kind}.{peer}."
            if f"{key}ratio" in result:
                lines.append(
                    f"| {title} | {TITLES[peer]} | {result[f'{kind}.trained_tokens_per_s']:,} "
                    f"| {result[f'{key}trained_tokens_per_s']:,} | **{result[f'{key}ratio']:.2f}** "
                    f"| {result[f'{key}cpu_ratio']:.2f} | {bar} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer", type=environments, default={}, help="NAME[=FOLDER],…: tunix, torch")
    parser.add_argument("--readme", action="store_true", help="write the table into benchmarks/README.md")
    options = parser.parse_args()
    if unknown := set(options.peer) - set(PEERS):
        raise ConfigError(f"peer {', '.join(sorted(unknown))} is not known; expected some of {', '.join(PEERS)}")
    jax.config.update("jax_platforms", "cpu")
    load = round(os.getloadavg()[0], 1)
    if options.peer:
        result: dict[str, Any] = {"rounds": options.rounds, "load_1m": load}
        for kind in KINDS:
            result |= beside(kind, options.peer, options.rounds)
    else:
        result = alone(options.rounds)
    result |= {"machine": machine(), "versions": versions("upswing", "jax", "jaxlib", "flax", "optax")}
    if options.readme:
        write_block(README, "update", f"{table(result)}\n\n{provenance(result)}")
    emit("update_peers" if options.peer else "update", result, append=options.append)


if __name__ == "__main__":
    run(main)
