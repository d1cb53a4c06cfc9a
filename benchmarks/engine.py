"""How fast the in-process engine samples: 64 requests at once, prompts of 32 tokens, 64 new tokens each.

    python benchmarks/engine.py [--append] [--rounds 7]

The model has 4 layers of width 128, 4 heads (2 kv), ffn 384 and 512 tokens; weights are random, prompts all different,
and nothing stops early. Every round samples plainly (temperature 1) and then with top-p 0.9; reported is the median.

The last line is a JSON object with these keys:
    sampled_tokens_per_s, sampled_tokens_per_cpu_s, best_sampled_tokens_per_s      plain sampling
    top_p.sampled_tokens_per_s, top_p.sampled_tokens_per_cpu_s                     with top-p 0.9
    compile_s          the first round, which compiles
    recompilations     programs compiled after the first round of each kind
    peak_memory_mb     largest resident size of the process
    rounds, machine, versions
"""

import asyncio
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import numpy as np

from benchmarks.common import arguments, emit, machine, versions
from rl.inference.engine import TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.metrics import CompileCounter
from rl.models.base import DecoderConfig
from rl.models.llama import build

REQUESTS, PROMPT, NEW = 64, 32, 64
SHAPE = DecoderConfig(vocab_size=512, layers=4, width=128, heads=4, kv_heads=2, ffn=384, context=PROMPT + NEW)


async def sample(engine: JaxEngine, seed: int, top_p: float) -> tuple[float, float]:
    """Wall and CPU seconds of one round."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(0, SHAPE.vocab_size, (REQUESTS, PROMPT)).tolist()
    wall, cpu = time.perf_counter(), time.process_time()
    done = await asyncio.gather(
        *(
            engine.generate(prompt, TokenSampling(top_p=top_p, max_tokens=NEW, seed=seed * REQUESTS + i))
            for i, prompt in enumerate(prompts)
        )
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert sum(len(generation.ids) for generation in done) == REQUESTS * NEW
    return wall, cpu


async def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    counter = CompileCounter()
    model = build(SHAPE)
    engine = JaxEngine(model, jax.jit(model.init)(jax.random.key(0)), slots=REQUESTS)
    compile_s, _ = await sample(engine, 0, 1.0)
    await sample(engine, 0, 0.9)
    compiled = counter.count
    rounds: dict[str, list[tuple[float, float]]] = {"": [], "top_p.": []}
    for number in range(1, options.rounds + 1):
        rounds[""].append(await sample(engine, number, 1.0))
        rounds["top_p."].append(await sample(engine, number, 0.9))
    await engine.close()
    tokens = REQUESTS * NEW
    result: dict[str, Any] = {"best_sampled_tokens_per_s": round(tokens / min(wall for wall, _ in rounds[""]))}
    for name, times in rounds.items():
        result[f"{name}sampled_tokens_per_s"] = round(tokens / statistics.median(wall for wall, _ in times))
        result[f"{name}sampled_tokens_per_cpu_s"] = round(tokens / statistics.median(cpu for _, cpu in times))
    result |= {
        "compile_s": round(compile_s, 1),
        "recompilations": counter.count - compiled,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rounds": options.rounds,
        "machine": machine(),
        "versions": versions("upswing", "jax", "jaxlib", "flax"),
    }
    emit("engine", result, append=options.append)


if __name__ == "__main__":
    asyncio.run(main())
