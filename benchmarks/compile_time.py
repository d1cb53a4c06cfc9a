"""How long the first update takes to compile, for 4 layers and for 32: layers are a loop, so depth should cost little.

    python benchmarks/compile_time.py [--append] [--rounds 3] [--readme]

The model is of width 128, 4 heads (2 kv), ffn 384 and 512 tokens; the update is GRPO on 8 rows of 96. Every measurement
is a process of its own, without jax's persistent compilation cache; depths alternate. Reported is the median.

The last line is a JSON object with these keys:
    layers_4.compile_s, layers_32.compile_s          tracing, lowering and compiling the update
    layers_4.compile_cpu_s, layers_32.compile_cpu_s  the same in CPU seconds
    ratio, cpu_ratio   32 layers over 4: the median of the rounds' ratios
    bar                what the ratio should not exceed
    rounds, load_1m (the load when it began), machine, versions
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax

from benchmarks.common import README, arguments, emit, machine, provenance, run, versions, write_block
from rl.algorithms import grpo
from rl.data.pack import Segment, pack
from rl.models.base import DecoderConfig
from rl.models.llama import build
from rl.trainer.optimizer import adamw
from rl.trainer.state import init_state
from rl.trainer.update import make_score, make_update

DEPTHS = (4, 32)
ROWS, LENGTH = 8, 96
BAR = 1.5


def compile_update(layers: int) -> dict[str, float]:
    """Compiles in this process; returns seconds by the clock and of CPU."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    shape = DecoderConfig(vocab_size=512, layers=layers, width=128, heads=4, kv_heads=2, ffn=384, context=LENGTH)
    model, algorithm, optimizer = build(shape), grpo(), adamw(steps=100)
    update = make_update(make_score(model), algorithm, optimizer, ROWS)
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda params: init_state(params, optimizer), params)
    row = Segment([1] * LENGTH, [True] * LENGTH, [-6.2] * LENGTH, 1.0, LENGTH)
    batch = pack([row] * ROWS, LENGTH, ROWS)
    hyper = {**optimizer.hyper, **algorithm.hyper, "temperature": 1.0}
    wall, cpu = time.perf_counter(), time.process_time()
    jax.jit(update, donate_argnums=0).lower(state, batch, hyper).compile()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def measure(layers: int) -> dict[str, float]:
    """`compile_update` in a process of its own."""
    command = [sys.executable, __file__, "--layers", str(layers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--readme", action="store_true", help="write the table into benchmarks/README.md")
    parser.add_argument("--layers", type=int, help="compile this one here, and say how long it took")
    options = parser.parse_args()
    if options.layers:
        print(json.dumps(compile_update(options.layers)))
        return
    load = round(os.getloadavg()[0], 1)
    rounds = [{layers: measure(layers) for layers in DEPTHS} for _ in range(options.rounds)]
    result: dict[str, Any] = {"rounds": options.rounds, "load_1m": load, "bar": BAR}
    for key, prefix in (("wall_s", ""), ("cpu_s", "cpu_")):
        for layers in DEPTHS:
            result[f"layers_{layers}.compile_{prefix}s"] = round(statistics.median(r[layers][key] for r in rounds), 2)
        result[f"{prefix}ratio"] = round(statistics.median(r[DEPTHS[1]][key] / r[DEPTHS[0]][key] for r in rounds), 2)
    result |= {"machine": machine(), "versions": versions("upswing", "jax", "jaxlib", "flax", "optax")}
    if options.readme:
        write_block(README, "compile", f"{table(result)}\n\n{provenance(result)}")
    emit("compile_time", result, append=options.append)


def table(result: dict[str, Any]) -> str:
    """The README's table."""
    few, many = (f"{result[f'layers_{layers}.compile_s']:.1f} s" for layers in DEPTHS)
    return (
        "| 4 layers | 32 layers | ratio | in CPU time | bar |\n|---|---|---|---|---|\n"
        f"| {few} | {many} | **{result['ratio']:.2f}** | {result['cpu_ratio']:.2f} | at most {BAR} |"
    )


if __name__ == "__main__":
    run(main)
