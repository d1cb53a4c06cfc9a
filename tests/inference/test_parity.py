"""The numbers of a comparison are those one works out by hand; our engine agrees with the trainer."""

import jax
import pytest

from envs.errors import UpswingError
from rl.inference.engine import TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.inference.parity import Position, compare, measure
from rl.models.base import DecoderConfig
from rl.models.llama import build

MODEL = build(DecoderConfig(vocab_size=64, layers=2, width=32, heads=4, kv_heads=2, ffn=48, context=64))
PARAMS, OTHER = (jax.jit(MODEL.init)(jax.random.key(seed)) for seed in (0, 1))


def test_differences_are_trainer_minus_engine_over_all_tokens_and_by_place() -> None:
    found = compare([[-1.0, -2.0], [-3.0]], [[-1.5, -2.0], [-2.0]], 0.75)
    assert found.tokens == 3 and found.top1 == 0.75
    assert found.mean_abs == pytest.approx(0.5)  # of 0.5, 0, 1
    assert found.max_abs == pytest.approx(1.0)
    assert found.k1 == pytest.approx(-1 / 6)  # minus the mean of -0.5, 0, 1
    assert found.k3 == pytest.approx((0.10653066 + 0.0 + 0.71828183) / 3)  # exp(d) - 1 - d
    assert found.positions == [Position(0, 2, 0.75, 1.0), Position(1, 1, 0.0, 0.0)]
    assert found.summary()["positions"][1] == {"position": 1, "tokens": 1, "mean_abs": 0.0, "max_abs": 0.0}


def test_no_token_is_no_comparison() -> None:
    with pytest.raises(UpswingError, match="drew no token"):
        compare([[], []], [[], []], 1.0)


async def test_our_engine_is_the_trainer_and_other_weights_are_found_out() -> None:
    engine = JaxEngine(MODEL, PARAMS, slots=4)
    prompts = [[1, 2, 3], [4, 5]]
    sampling = TokenSampling(temperature=0.7, max_tokens=8)
    try:
        same = await measure(engine, MODEL, PARAMS, prompts, sampling)
        differ = await measure(engine, MODEL, OTHER, prompts, sampling)
    finally:
        await engine.close()
    assert same.tokens == 16 and len(same.positions) == 8
    assert same.max_abs < 1e-5 and same.top1 == 1.0
    assert differ.max_abs > 0.5 and differ.top1 < 0.5
