"""Qwen3-MoE: Qwen3 with a mixture of experts in place of most feed-forward layers.

Qwen team 2025, arXiv:2505.09388; reference code: `Qwen3MoeForCausalLM` of Hugging Face transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rl.models.base import Model
from rl.models.decoder import Run, assemble
from rl.models.family import Family, Stored, Tensors, needed, require
from rl.models.keys import LAYER, attention, ends, norms, read_sizes, swiglu, write_sizes
from rl.models.layers import SwiGLU
from rl.models.llama import Block
from rl.models.moe import Experts, Mixture, MoeConfig, Router, runs_of, softmax_top_k
from rl.models.qwen3 import normed_attention
from rl.models.rope import read_rope, write_rope


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(MoeConfig):
    """What only this family has.

    Attributes:
        dense_layers: numbers of the layers without experts.
        normalise: the weights of a token's experts sum to one.
    """

    dense_layers: tuple[int, ...] = ()
    normalise: bool = True


def build(config: Qwen3MoeConfig) -> Model:
    """The model of this shape."""
    choose = partial(softmax_top_k, k=config.experts_per_token, normalise=config.normalise)

    def block(dense: bool) -> Block:
        ffn = SwiGLU(config) if dense else Mixture(Router(config, choose), Experts(config))
        return Block(config, normed_attention(config), ffn)

    runs = runs_of(config.layers, config.dense_layers)
    return assemble(config, [Run(name, partial(block, dense), len(layers)) for name, dense, layers in runs])


def read_config(config: Mapping[str, Any]) -> Qwen3MoeConfig:
    """The shape that a `config.json` describes. A window, if there is one, is every layer's."""
    require(config, hidden_act="silu")
    sizes = read_sizes(config)
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
    return Qwen3MoeConfig(
        **sizes,
        ropes=(read_rope(config),),
        windows=(window,) * sizes["layers"],
        attention_bias=config.get("attention_bias", False),
        experts=config.get("num_local_experts") or needed(config, "num_experts"),  # since transformers 5.2x, and before
        experts_per_token=needed(config, "num_experts_per_tok"),
        expert_ffn=needed(config, "moe_intermediate_size"),
        dense_layers=tuple(i for i in range(sizes["layers"]) if i in dense or (i + 1) % step),
        normalise=config.get("norm_topk_prob", False),
    )


def write_config(config: Qwen3MoeConfig) -> dict[str, Any]:
    """A `config.json` that describes the shape."""
    return {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        **write_sizes(config),
        **write_rope(config.ropes[0]),
        "attention_bias": config.attention_bias,
        "use_sliding_window": config.windows[0] is not None,
        "sliding_window": config.windows[0],
        "num_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "moe_intermediate_size": config.expert_ffn,
        "norm_topk_prob": config.normalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(config.dense_layers),
        "hidden_act": "silu",
    }


def tensors(config: Qwen3MoeConfig) -> Tensors:
    """Where each parameter lies in a checkpoint."""
    found: dict[str, Stored] = dict(ends(config))
    bias = config.attention_bias
    for stack, dense, _ in runs_of(config.layers, config.dense_layers):
        found |= {**norms(stack), **attention(stack, bias=bias, out_bias=bias, qk_norm=True)}
        found |= swiglu(stack) if dense else mixture(stack)
    return found


def mixture(stack: str) -> Tensors:
    """A router and experts that have a tensor each."""
    return {
        f"{stack}/ffn/router/weight": Stored(f"{LAYER}.mlp.gate.weight", transposed=True),
        **swiglu(stack, "ffn/experts", "mlp.experts.{expert}"),
    }


FAMILY = Family("qwen3_moe", ("qwen3_moe",), read_config, write_config, build, tensors)
