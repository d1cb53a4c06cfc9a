"""What routing replay is worth: a sampler in bfloat16, its tokens scored by the trainer with and without replay.

    python benchmarks/routing_replay.py [--append] [--readme]

The model is of width 128, 4 layers of 16 experts, 2 per token, with random weights (feed-forward weights three times as
large as fresh ones, so that the choice of experts matters). The engine draws 48 tokens after each of 16 random prompts;
the trainer, in float32 and in bfloat16, says what it thinks of them: with the same weights, where only arithmetic
differs. Means over seeds of weights, prompts and draws.

The last line is a JSON object with these keys:
    D.rerouted                     share of (token, layer) that a trainer in dtype D sends elsewhere
    D.free.k3, D.free.max          nats per token (`mismatch/k3`), and the largest difference of a log-probability
    D.replayed.k3, D.replayed.max  the same with the sampler's experts
    seeds, load_1m (the load when it began), machine, versions
"""

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import numpy as np

from benchmarks.common import arguments, emit, machine, provenance, run, versions, write_block
from rl.data.pack import Segment, pack
from rl.data.routing import choices
from rl.inference.engine import TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.models.base import Params
from rl.models.decoder import hidden_states
from rl.models.qwen3_moe import Qwen3MoeConfig, build
from rl.models.replay import chosen
from rl.trainer.update import make_score
from rl.types import Batch

CONFIG = Qwen3MoeConfig(
    **{"vocab_size": 264, "layers": 4, "width": 128, "heads": 4, "kv_heads": 2, "context": 64},
    **{"experts": 16, "experts_per_token": 2, "expert_ffn": 64, "compute_dtype": "bfloat16"},
)
PROMPTS, PROMPT, DRAWN = 16, 16, 48
SEEDS = 3
DTYPES = ("float32", "bfloat16")


def weights(seed: int) -> Params:
    """Random, and decided enough to be sampled from."""
    params = jax.jit(build(CONFIG).init)(jax.random.key(seed))
    layers = {**params["layers"], "ffn": jax.tree.map(lambda leaf: 3 * leaf, params["layers"]["ffn"])}
    return {**params, "embed": 4 * params["embed"], "layers": layers}


async def sampled(params: Params, seed: int) -> Batch:
    """What the engine drew, with the experts it went through."""
    engine = JaxEngine(build(CONFIG), params, slots=PROMPTS, lanes=1, record_routing=True)
    prompts = np.random.default_rng(seed).integers(0, 256, (PROMPTS, PROMPT)).tolist()
    drawn = await asyncio.gather(
        *(engine.generate(p, TokenSampling(max_tokens=DRAWN, seed=i)) for i, p in enumerate(prompts))
    )
    await engine.close()
    parts = []
    for prompt, found in zip(prompts, drawn, strict=True):
        assert found.routing is not None
        known = choices(found.routing)
        experts = np.concatenate([known, np.full((1, *known.shape[1:]), -1, np.int16)])
        mask, logprobs = [False] * PROMPT + [True] * len(found.ids), [0.0] * PROMPT + found.logprobs
        parts.append(Segment([*prompt, *found.ids], mask, logprobs, rollout_tokens=len(found.ids), experts=experts))
    return pack(parts, PROMPT + DRAWN, 1)


def compared(params: Params, batch: Batch, dtype: str) -> dict[str, float]:
    """The trainer in `dtype` beside the sampler."""
    model = build(replace(CONFIG, compute_dtype=dtype))
    assert batch.experts is not None
    found = {}
    for name, asked in (("free", batch._replace(experts=None)), ("replayed", batch)):
        logprobs = np.asarray(jax.jit(make_score(model))(params, asked, 1.0).logprobs)
        apart = (logprobs - batch.behaviour_logprobs)[batch.mask].astype(np.float64)
        found |= {f"{name}.k3": float((np.expm1(apart) - apart).mean()), f"{name}.max": float(np.abs(apart).max())}
    rows = (batch.tokens, batch.positions, batch.segment_ids)
    own = np.asarray(jax.jit(lambda params: chosen(model, hidden_states(model, params, *rows)[1]))(params))
    other = (np.sort(own, axis=-1) != np.sort(batch.experts, axis=-1)).any(axis=-1)
    return {"rerouted": float(other[batch.experts[..., 0] >= 0].mean()), **found}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--readme", action="store_true", help="write the table into docs/models.md")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    result: dict[str, Any] = {"seeds": SEEDS, "load_1m": round(os.getloadavg()[0], 1)}
    each: list[dict[str, float]] = []
    for seed in range(SEEDS):
        params = weights(seed)
        batch = asyncio.run(sampled(params, seed))
        each.append({f"{d}.{name}": value for d in DTYPES for name, value in compared(params, batch, d).items()})
    result |= {name: float(f"{np.mean([found[name] for found in each]):.3g}") for name in each[0]}
    result |= {"machine": machine(), "versions": versions("upswing", "jax", "jaxlib", "flax")}
    if options.readme:
        place = Path(__file__).parent.parent / "docs" / "models.md"
        write_block(place, "routing_replay", f"{table(result)}\n\n{provenance(result)}")
    emit("routing_replay", result, append=options.append)


def table(result: dict[str, Any]) -> str:
    """The table of docs/models.md."""
    lines = ["| trainer | sent elsewhere | k3, free | k3, replayed | largest, free | largest, replayed |"]
    lines += ["|---|---|---|---|---|---|"]
    for d in DTYPES:
        of = {name: result[f"{d}.{name}"] for name in ("free.k3", "replayed.k3", "free.max", "replayed.max")}
        numbers = " | ".join(f"{value:.2g}" for value in of.values())
        lines.append(f"| {d} | {100 * result[f'{d}.rerouted']:.1f} % | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
