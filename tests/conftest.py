"""How every test runs: eight CPU devices, no silent promotion of dtypes or ranks, shape annotations checked.

The environment is set before anything imports jax, and nothing here imports it: tests without jax start as before.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

from typing import TYPE_CHECKING

import hypothesis
import jaxtyping
import pytest

if TYPE_CHECKING:
    from rl.models.base import Model, Params

CHECKED = ["rl.ops", "rl.algorithms", "rl.data", "rl.inference.sampler", "rl.inference.decode", "rl.models"]
CHECKED += ["rl.trainer.update", "rl.trainer.state", "rl.trainer.optimizer", "rl.trainer.rules"]
CHECKED += ["rl.types"]
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

# The same examples every time, however long a busy machine takes for one.
hypothesis.settings.register_profile(
    "upswing", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("upswing")


@pytest.fixture(scope="session")
def model() -> "Model":
    """Two layers of width 32 over the vocabulary of `ByteRenderer`."""
    from rl.models.base import DecoderConfig
    from rl.models.llama import build

    return build(DecoderConfig(vocab_size=264, layers=2, width=32, heads=4, kv_heads=2, ffn=64, context=48))


@pytest.fixture(scope="session")
def params(model: "Model") -> "Params":
    import jax

    return jax.jit(model.init)(jax.random.key(0))
