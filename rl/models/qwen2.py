"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and windows in the upper layers.

Qwen team 2024, arXiv:2407.10671; reference code: `Qwen2ForCausalLM` of Hugging Face transformers.
"""

from collections.abc import Mapping
from typing import Any

from rl.models.base import DecoderConfig, Model
from rl.models.decoder import Run, assemble
from rl.models.family import Family, Tensors, require
from rl.models.keys import (
    attention,
    ends,
    norms,
    read_layer_types,
    read_sizes,
    read_windows,
    swiglu,
    write_sizes,
    write_windows,
)
from rl.models.layers import Attention, SwiGLU
from rl.models.llama import Block
from rl.models.rope import read_rope, write_rope


def build(config: DecoderConfig) -> Model:
    """The model of this shape."""
    return assemble(
        config, [Run("layers", lambda: Block(config, Attention(config, bias=True), SwiGLU(config)), config.layers)]
    )


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The shape that a `config.json` describes."""
    require(config, hidden_act="silu")
    return DecoderConfig(
        **read_sizes(config),
        ropes=(read_rope(config),),
        windows=read_upper_windows(config),
        attention_bias=True,
    )


def read_upper_windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Windows as Qwen's files have them: if at all, from layer `max_window_layers` on (or as `layer_types` says)."""
    if not config.get("use_sliding_window", False):
        config = {**config, "sliding_window": None}
    first = config.get("max_window_layers", 28)
    return read_windows({"sliding_window": 4096, **config}, read_layer_types(config, lambda i: i >= first))


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """A `config.json` that describes the shape."""
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        **write_sizes(config),
        **write_rope(config.ropes[0]),
        **write_upper_windows(config),
        "hidden_act": "silu",
    }


def write_upper_windows(config: DecoderConfig) -> dict[str, Any]:
    """What `read_upper_windows` reads."""
    sliding = [window is not None for window in config.windows]
    return {
        **write_windows(config.windows),
        "use_sliding_window": any(sliding),
        "max_window_layers": sliding.index(True) if any(sliding) else config.layers,
    }


def tensors(config: DecoderConfig) -> Tensors:
    """Where each parameter lies in a checkpoint."""
    return {**ends(config), **norms("layers"), **attention("layers", bias=True), **swiglu("layers")}


FAMILY = Family("qwen2", ("qwen2",), read_config, write_config, build, tensors)
