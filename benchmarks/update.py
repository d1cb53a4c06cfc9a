"""How fast an update is: GRPO on 64 rows of 96 tokens (prompts of 32, completions of 64), everything included.

    python benchmarks/update.py [--append] [--rounds 7]

The model has 4 layers of width 128, 4 heads (2 kv), ffn 384 and 512 tokens. An update is the whole compiled program:
forward, loss, backward, clipping, AdamW, metrics. Reported is the median over the rounds.

The last line is a JSON object with these keys:
    trained_tokens_per_s, trained_tokens_per_cpu_s, best_trained_tokens_per_s     tokens in the rows, prompts included
    compile_s          the first update, which compiles
    recompilations     programs compiled after it
    peak_memory_mb     largest resident size of the process
    rounds, machine, versions
"""

import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import numpy as np

from benchmarks.common import arguments, emit, machine, versions
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

ROWS, PROMPT, NEW = 64, 32, 64
MICROBATCH = 8  # what a core works on stays in its cache: 16 took about 5 % longer
SHAPE = DecoderConfig(vocab_size=512, layers=4, width=128, heads=4, kv_heads=2, ffn=384, context=PROMPT + NEW)


def batch(seed: int) -> Batch:
    """Random tokens with random advantages, as full as rows can be."""
    rng = np.random.default_rng(seed)
    mask = [False] * PROMPT + [True] * NEW
    logprobs = [0.0] * PROMPT + [-6.2] * NEW
    rows = [
        Segment(rng.integers(0, SHAPE.vocab_size, PROMPT + NEW).tolist(), mask, logprobs, rng.normal(), NEW)
        for _ in range(ROWS)
    ]
    return pack(rows, PROMPT + NEW, MICROBATCH)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    counter = CompileCounter()
    model, algorithm, optimizer = build(SHAPE), grpo(), adamw(steps=100)
    update = make_update(make_score(model), algorithm, optimizer, MICROBATCH)
    apply = make_apply(update, {**optimizer.hyper, **algorithm.hyper, "temperature": 1.0})
    state = init_state(jax.jit(model.init)(jax.random.key(0)), optimizer)
    started = time.perf_counter()
    state, _ = apply(state, batch(0))
    compile_s, compiled, times = time.perf_counter() - started, counter.count, []
    for number in range(1, options.rounds + 1):
        arrays = batch(number)
        wall, cpu = time.perf_counter(), time.process_time()
        state, metrics = apply(state, arrays)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
        assert not metrics["nonfinite"]
    tokens = ROWS * (PROMPT + NEW)
    result = {
        "trained_tokens_per_s": round(tokens / statistics.median(wall for wall, _ in times)),
        "trained_tokens_per_cpu_s": round(tokens / statistics.median(cpu for _, cpu in times)),
        "best_trained_tokens_per_s": round(tokens / min(wall for wall, _ in times)),
        "compile_s": round(compile_s, 1),
        "recompilations": counter.count - compiled,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rounds": options.rounds,
        "machine": machine(),
        "versions": versions("upswing", "jax", "jaxlib", "flax", "optax"),
    }
    emit("update", result, append=options.append)


if __name__ == "__main__":
    main()
