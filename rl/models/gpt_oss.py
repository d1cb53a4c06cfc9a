"""gpt-oss: a mixture of experts in every layer, attention with sinks, and a window in every other layer.

OpenAI 2025, arXiv:2508.10925; reference code: `GptOssForCausalLM` of Hugging Face transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rl.models.base import Model
from rl.models.decoder import Run, assemble
from rl.models.family import Family, Stored, Tensors, needed, require
from rl.models.keys import (
    LAYER,
    attention,
    ends,
    norms,
    read_layer_types,
    read_sizes,
    read_windows,
    write_sizes,
    write_windows,
)
from rl.models.layers import Attention, weight
from rl.models.llama import Block
from rl.models.moe import Mixture, MoeConfig, Router, grouped, top_k_softmax
from rl.models.rope import read_rope, write_rope

ROPE = {
    **{"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
    **{"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
}
"""Of a file that does not say."""


@dataclass(frozen=True, kw_only=True)
class GptOssConfig(MoeConfig):
    """What only this family has.

    Attributes:
        alpha: steepness of the gate's sigmoid.
        limit: the gate is cut off above it, and what it gates on both sides.
    """

    alpha: float = 1.702
    limit: float = 7.0


class ClampedExperts(nnx.Module):
    """Experts with biases whose gates and values are bounded, and interleaved in one matrix."""

    def __init__(self, config: GptOssConfig) -> None:
        E, D, F = config.experts, config.width, config.expert_ffn
        self.gate_up = weight((E, D, 2 * F), ("experts", "embed", "ffn"), D**-0.5)
        self.gate_up_bias = weight((E, 2 * F), ("experts", "ffn"), 0.0)
        self.down = weight((E, F, D), ("experts", "ffn", "embed"), F**-0.5 * (2 * config.layers) ** -0.5)
        self.down_bias = weight((E, D), ("experts", "embed"), 0.0)
        self.alpha, self.limit = config.alpha, config.limit

    def __call__(
        self, rows: Float[Array, "M D"], sizes: Int[Array, "E"], experts: Int[Array, "M"]
    ) -> Float[Array, "M D"]:
        both = grouped(rows, self.gate_up[...], sizes) + self.gate_up_bias[...].astype(rows.dtype)[experts]
        gate, up = jnp.minimum(both[:, ::2], self.limit), jnp.clip(both[:, 1::2], -self.limit, self.limit)
        inner = gate * jax.nn.sigmoid(self.alpha * gate) * (up + 1)
        return grouped(inner, self.down[...], sizes) + self.down_bias[...].astype(rows.dtype)[experts]


def build(config: GptOssConfig) -> Model:
    """The model of this shape."""
    choose = partial(top_k_softmax, k=config.experts_per_token)

    def block() -> Block:
        bias = config.attention_bias
        attention = Attention(config, bias=bias, out_bias=bias, sinks=True)
        return Block(config, attention, Mixture(Router(config, choose, bias=True), ClampedExperts(config)))

    return assemble(config, [Run("layers", block, config.layers)])


def read_config(config: Mapping[str, Any]) -> GptOssConfig:
    """The shape that a `config.json` describes."""
    require(config, hidden_act="silu")
    if not config.get("rope_parameters") and not config.get("rope_scaling"):
        config = {**config, "rope_scaling": ROPE}
    sliding = read_layer_types(config, lambda layer: layer % 2 == 0)
    return GptOssConfig(
        **read_sizes(config),
        ropes=(read_rope(config, theta=150_000.0),),
        windows=read_windows({"sliding_window": 128, **config}, sliding),
        attention_bias=config.get("attention_bias", True),
        experts=needed(config, "num_local_experts"),
        experts_per_token=needed(config, "num_experts_per_tok"),
        expert_ffn=needed(config, "intermediate_size"),
        alpha=config.get("swiglu_alpha", 1.702),
        limit=config.get("swiglu_limit", 7.0),
    )


def write_config(config: GptOssConfig) -> dict[str, Any]:
    """A `config.json` that describes the shape."""
    return {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        **write_sizes(config),
        "rope_scaling": {"rope_type": "default"},
        **write_rope(config.ropes[0]),
        **write_windows(config.windows),
        "attention_bias": config.attention_bias,
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "swiglu_alpha": config.alpha,
        "swiglu_limit": config.limit,
        "hidden_act": "silu",
    }


def tensors(config: GptOssConfig) -> Tensors:
    """Where each parameter lies in a checkpoint; all experts of a layer share a tensor."""
    bias, module = config.attention_bias, f"{LAYER}.mlp"
    return {
        **ends(config),
        **norms("layers"),
        **attention("layers", bias=bias, out_bias=bias, sinks=True),
        "layers/ffn/router/weight": Stored(f"{module}.router.weight", transposed=True),
        "layers/ffn/router/bias": Stored(f"{module}.router.bias"),
        **{
            f"layers/ffn/experts/{name.replace('_proj', '')}": Stored(f"{module}.experts.{name}")
            for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
        },
    }


FAMILY = Family("gpt_oss", ("gpt_oss",), read_config, write_config, build, tensors)
