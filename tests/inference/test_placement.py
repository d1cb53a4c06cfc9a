"""The engine over several devices, pretended on the CPU: what it draws is what one device draws."""

import jax
import numpy as np
from jax.sharding import PartitionSpec

from rl.inference.engine import Generation, TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.models.base import Model, Params
from rl.parallel.mesh import make_mesh, parameter_shardings

HEADS = {"heads": "tensor", "kv_heads": "tensor", "ffn": "tensor", "vocab": "tensor"}


async def drawn(model: Model, params: Params) -> tuple[JaxEngine, list[Generation]]:
    engine = JaxEngine(model, params, slots=2, tokens_per_dispatch=4)
    prompt = [5, 6, 7, 8]
    generations = [
        await engine.generate(prompt, TokenSampling(temperature, max_tokens=12, seed=1)) for temperature in (0.0, 1.0)
    ]
    before = engine.compiled_programs()
    again = await engine.generate(prompt, TokenSampling(1.0, max_tokens=12, seed=1))
    assert (again.ids, engine.compiled_programs()) == (generations[1].ids, before)
    await engine.close()
    return engine, generations


async def test_split_over_devices_it_draws_the_same(model: Model, params: Params) -> None:
    _, alone = await drawn(model, params)
    for tensor, rules, spec in (
        (2, HEADS, PartitionSpec(None, "tensor")),
        (4, {**HEADS, "kv_heads": None}, PartitionSpec()),  # two kv heads are whole on each of four devices
    ):
        mesh = make_mesh({"data": 1, "tensor": tensor})
        spread = jax.device_put(params, parameter_shardings(mesh, model.axes, rules))
        engine, together = await drawn(model, spread)
        keys = engine._lanes[0]._cache.keys[0]
        assert keys.sharding.spec == spec and len(keys.sharding.device_set) == tensor
        assert [g.ids for g in together] == [g.ids for g in alone]
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_allclose(many.plain_logprobs, one.plain_logprobs, atol=1e-5)
