"""Gemma 3, text only: norms before and after each part, scaled embeddings, five layers with a window and positions of
their own to one that sees all.

Gemma team 2025, arXiv:2503.19786; reference code: `Gemma3ForCausalLM` of Hugging Face transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from rl.models.base import Attend, DecoderConfig, Model, Observed, Rotation
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
from rl.models.layers import Attention, RMSNorm, SwiGLU
from rl.models.rope import Rope, read_rope, write_rope

FULL, SLIDING = 0, 1
"""The two kinds of layers, as numbers of their rotary positions."""

gelu = partial(jax.nn.gelu, approximate=True)


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(DecoderConfig):
    """What only this family has.

    Attributes:
        query_scalar: scores are divided by its root.
    """

    query_scalar: int = 256


class Block(nnx.Module):
    """Attention and feed-forward, each between two norms and beside a residual connection."""

    def __init__(self, config: Gemma3Config) -> None:
        norm = partial(RMSNorm, config.width, config.norm_eps, offset=1.0)
        self.attention_norm = norm()
        self.attention = Attention(
            config,
            scale=config.query_scalar**-0.5,
            bias=config.attention_bias,
            out_bias=config.attention_bias,
            qk_norm=lambda: RMSNorm(config.head_size, config.norm_eps, axis="head", offset=1.0),
        )
        self.attended_norm = norm()
        self.ffn_norm = norm()
        self.ffn = SwiGLU(config, activation=gelu)
        self.out_norm = norm()

    def __call__(
        self, x: Float[Array, "B T D"], rotation: Rotation, attend: Attend, state: Any = None
    ) -> tuple[Float[Array, "B T D"], Any, Observed]:
        attended, state = self.attention(self.attention_norm(x), rotation, attend, state)
        x = x + self.attended_norm(attended)
        out, observed = self.ffn(self.ffn_norm(x))
        return x + self.out_norm(out), state, observed


def build(config: Gemma3Config) -> Model:
    """The model of this shape."""
    return assemble(
        config,
        [Run("layers", lambda: Block(config), config.layers)],
        norm=lambda: RMSNorm(config.width, config.norm_eps, offset=1.0),
        embed_scale=config.width**0.5,
    )


def read_config(config: Mapping[str, Any]) -> Gemma3Config:
    """The shape that a `config.json` describes."""
    require(
        config,
        hidden_activation="gelu_pytorch_tanh",
        use_bidirectional_attention=(False, None),
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    )
    every = config.get("sliding_window_pattern", 6)
    sliding = read_layer_types(config, lambda layer: (layer + 1) % every != 0)
    return Gemma3Config(
        **read_sizes(config, tied=True),
        ropes=_read_ropes(config),
        layer_ropes=tuple(SLIDING if slides else FULL for slides in sliding),
        windows=read_windows({"sliding_window": 4096, **config}, sliding),
        attention_bias=config.get("attention_bias", False),
        query_scalar=int(config.get("query_pre_attn_scalar", 256)),
    )


def _read_ropes(config: Mapping[str, Any]) -> tuple[Rope, Rope]:
    """Rotary positions of layers that see all, and of those with a window."""
    new = config.get("rope_parameters") or {}
    full = {**config, "rope_parameters": new.get("full_attention")}
    sliding = {**config, "rope_parameters": new.get("sliding_attention"), "rope_scaling": None, "rope_theta": None}
    return read_rope(full, theta=1e6), read_rope(sliding, theta=config.get("rope_local_base_freq", 1e4))


def write_config(config: Gemma3Config) -> dict[str, Any]:
    """A `config.json` that describes the shape."""
    full, sliding = config.ropes
    return {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        **write_sizes(config),
        **write_rope(full),
        "rope_local_base_freq": sliding.theta,
        **write_windows(config.windows, [rope == SLIDING for rope in config.layer_ropes]),
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": int(config.query_scalar),  # transformers takes whole numbers only
        "hidden_activation": "gelu_pytorch_tanh",
    }


def tensors(config: Gemma3Config) -> Tensors:
    """Where each parameter lies in a checkpoint."""
    bias = config.attention_bias
    return {
        **ends(config),
        **norms(
            "layers",
            ffn_norm="pre_feedforward_layernorm",
            attended_norm="post_attention_layernorm",
            out_norm="post_feedforward_layernorm",
        ),
        **attention("layers", bias=bias, out_bias=bias, qk_norm=True),
        **swiglu("layers"),
    }


FAMILY = Family("gemma3", ("gemma3_text",), read_config, write_config, build, tensors)
