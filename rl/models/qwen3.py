"""Qwen3 (dense): Llama with a norm on every head's queries and keys, and heads whose size is free.

Qwen team 2025, arXiv:2505.09388; reference code: `Qwen3ForCausalLM` of Hugging Face transformers.
"""

from collections.abc import Mapping
from typing import Any

from rl.models.base import DecoderConfig, Model
from rl.models.decoder import Run, assemble
from rl.models.family import Family, Tensors, require
from rl.models.keys import attention, ends, norms, read_sizes, swiglu, write_sizes
from rl.models.layers import Attention, RMSNorm, SwiGLU
from rl.models.llama import Block
from rl.models.qwen2 import read_upper_windows, write_upper_windows
from rl.models.rope import read_rope, write_rope


def normed_attention(config: DecoderConfig) -> Attention:
    """Attention whose queries and keys are normed per head."""
    return Attention(
        config,
        bias=config.attention_bias,
        out_bias=config.attention_bias,
        qk_norm=lambda: RMSNorm(config.head_size, config.norm_eps, axis="head"),
    )


def build(config: DecoderConfig) -> Model:
    """The model of this shape."""
    return assemble(
        config, [Run("layers", lambda: Block(config, normed_attention(config), SwiGLU(config)), config.layers)]
    )


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The shape that a `config.json` describes."""
    require(config, hidden_act="silu")
    return DecoderConfig(
        **read_sizes(config),
        ropes=(read_rope(config),),
        windows=read_upper_windows(config),
        attention_bias=config.get("attention_bias", False),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """A `config.json` that describes the shape."""
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        **write_sizes(config),
        **write_rope(config.ropes[0]),
        **write_upper_windows(config),
        "attention_bias": config.attention_bias,
        "hidden_act": "silu",
    }


def tensors(config: DecoderConfig) -> Tensors:
    """Where each parameter lies in a checkpoint."""
    bias = config.attention_bias
    return {
        **ends(config),
        **norms("layers"),
        **attention("layers", bias=bias, out_bias=bias, qk_norm=True),
        **swiglu("layers"),
    }


FAMILY = Family("qwen3", ("qwen3",), read_config, write_config, build, tensors)
