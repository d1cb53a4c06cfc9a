"""The engine runs every kind of block: what it says of its tokens is what the trainer's forward pass says of them."""

import asyncio
import json
from pathlib import Path

import jax
import numpy as np
import parity_ours
import pytest
from parity_cases import weight

from rl.data.pack import Segment, pack
from rl.inference.engine import TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.trainer.update import make_score

GOLDEN = Path(__file__).parents[1] / "golden" / "models"


@pytest.mark.parametrize("name", ["gemma3", "glm4_moe", "gpt_oss", "qwen3_moe"])
async def test_logprobs_equal_the_trainers(name: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    config, shapes = json.loads(str(golden["config"])), json.loads(str(golden["tensors"]))
    model, params, _ = parity_ours.load(config, lambda tensor: weight(tensor, shapes[tensor]))
    engine = JaxEngine(model, params, slots=2, context=48, tokens_per_dispatch=4, chunk=16)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, model.config.vocab_size, n).tolist() for n in (30, 5)]  # in two pieces; in one
    done = await asyncio.gather(*(engine.generate(p, TokenSampling(max_tokens=14, seed=1)) for p in prompts))
    await engine.close()
    segments = [
        Segment([*p, *g.ids], [False] * len(p) + [True] * 14, [0.0] * len(p) + g.logprobs, 0.0, 14)
        for p, g in zip(prompts, done, strict=True)
    ]
    batch = pack(segments, row_length=48, rows_multiple=2)
    recomputed = np.asarray(jax.jit(make_score(model))(params, batch, 1.0).logprobs)[batch.mask]
    np.testing.assert_allclose(batch.behaviour_logprobs[batch.mask], recomputed, atol=1e-5)
    assert recomputed.std() > 0.1
