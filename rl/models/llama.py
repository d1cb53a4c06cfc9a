"""Llama 3 and its relatives (also SmolLM2, Mistral, and our own small models): RMSNorm, rotary positions,
grouped-query attention, SwiGLU.

Touvron et al. 2023, arXiv:2307.09288; reference code: `LlamaForCausalLM`, `MistralForCausalLM` of Hugging Face
transformers.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from rl.models.base import Attend, DecoderConfig, Model, Observed, Rotation
from rl.models.decoder import Run, assemble
from rl.models.family import Family, Tensors, require
from rl.models.keys import attention, ends, norms, read_sizes, swiglu, write_sizes
from rl.models.layers import Attention, FeedForward, RMSNorm, SwiGLU
from rl.models.rope import read_rope, write_rope


class Block(nnx.Module):
    """Attention and feed-forward, each behind a norm and beside a residual connection."""

    def __init__(self, config: DecoderConfig, attention: Attention, ffn: FeedForward) -> None:
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = attention
        self.ffn_norm = RMSNorm(config.width, config.norm_eps)
        self.ffn = ffn

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rotation: Rotation,
        attend: Attend,
        state: Any = None,
        *experts: Int[Array, "B T k"],
    ) -> tuple[Float[Array, "B T D"], Any, Observed]:
        attended, state = self.attention(self.attention_norm(x), rotation, attend, state)
        x = x + attended
        out, observed = self.ffn(self.ffn_norm(x), *experts)
        return x + out, state, observed


def build(config: DecoderConfig) -> Model:
    """The model of this shape."""

    def block() -> Block:
        bias = config.attention_bias
        return Block(config, Attention(config, bias=bias, out_bias=bias), SwiGLU(config, bias=config.ffn_bias))

    return assemble(config, [Run("layers", block, config.layers)])


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The shape that a `config.json` describes. Only Mistral has windows, of 4096 tokens when it does not say."""
    require(config, hidden_act="silu")
    sizes = read_sizes(config)
    window = config.get("sliding_window", 4096) if config.get("model_type") == "mistral" else None
    return DecoderConfig(
        **sizes,
        ropes=(read_rope(config),),
        windows=(window,) * sizes["layers"],
        attention_bias=config.get("attention_bias", False),
        ffn_bias=config.get("mlp_bias", False),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """A `config.json` that describes the shape."""
    kind: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": config.attention_bias,
        "mlp_bias": config.ffn_bias,
    }
    if config.windows[0] is not None:
        kind = {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "sliding_window": config.windows[0],
        }
    return {**kind, **write_sizes(config), **write_rope(config.ropes[0]), "hidden_act": "silu"}


def tensors(config: DecoderConfig) -> Tensors:
    """Where each parameter lies in a checkpoint."""
    bias = config.attention_bias
    return {
        **ends(config),
        **norms("layers"),
        **attention("layers", bias=bias, out_bias=bias),
        **swiglu("layers", bias=config.ffn_bias),
    }


FAMILY = Family("llama", ("llama", "mistral"), read_config, write_config, build, tensors)
