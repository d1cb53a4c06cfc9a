"""GLM-4.5 (the base of INTELLECT-3): a mixture of experts chosen by sigmoids and balanced by a bias, with experts that
all tokens share, after a few dense layers; half of each head is turned.

GLM team 2025, arXiv:2508.06471; reference code: `Glm4MoeForCausalLM` of Hugging Face transformers. The layers after the
last that predict further tokens (MTP) are left out, there and here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rl.models.base import Model
from rl.models.decoder import Run, assemble
from rl.models.family import Family, Stored, Tensors, needed, require
from rl.models.keys import LAYER, attention, ends, norms, read_sizes, swiglu, write_sizes
from rl.models.layers import Attention, RMSNorm, SwiGLU
from rl.models.llama import Block
from rl.models.moe import Experts, Mixture, MoeConfig, Router, runs_of, sigmoid_top_k
from rl.models.qwen3_moe import mixture
from rl.models.rope import read_rope, write_rope


@dataclass(frozen=True, kw_only=True)
class Glm4MoeConfig(MoeConfig):
    """What only this family has.

    Attributes:
        dense_layers: how many come first.
        shared_experts: that every token goes through, as one feed-forward layer so many times as wide as an expert.
        groups: of experts.
        top_groups: that a token may choose from.
        normalise: the weights of a token's experts sum to one, before `scale`.
        scale: multiplies what the chosen experts make of a token.
        qk_norm: queries and keys are normed per head.
    """

    dense_layers: int = 1
    shared_experts: int = 1
    groups: int = 1
    top_groups: int = 1
    normalise: bool = True
    scale: float = 1.0
    qk_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts % self.groups:
            raise ValueError(f"{self.experts} experts cannot be cut into {self.groups} groups")
        reachable = self.experts // self.groups * self.top_groups
        if self.experts_per_token > reachable:
            raise ValueError(f"a token goes through {self.experts_per_token} experts, but its groups have {reachable}")


def build(config: Glm4MoeConfig) -> Model:
    """The model of this shape."""
    choose = partial(
        sigmoid_top_k,
        k=config.experts_per_token,
        groups=config.groups,
        top_groups=config.top_groups,
        normalise=config.normalise,
        scale=config.scale,
    )

    def block(dense: bool) -> Block:
        def norm() -> RMSNorm:
            return RMSNorm(config.head_size, config.norm_eps, axis="head")

        attention = Attention(config, bias=config.attention_bias, qk_norm=norm if config.qk_norm else None)
        if dense:
            return Block(config, attention, SwiGLU(config))
        shared = SwiGLU(config, config.shared_experts * config.expert_ffn)
        return Block(config, attention, Mixture(Router(config, choose, load_bias=True), Experts(config), shared))

    return assemble(config, [Run(name, partial(block, dense), len(layers)) for name, dense, layers in _runs(config)])


def _runs(config: Glm4MoeConfig) -> list[tuple[str, bool, range]]:
    return runs_of(config.layers, range(config.dense_layers))


def read_config(config: Mapping[str, Any]) -> Glm4MoeConfig:
    """The shape that a `config.json` describes."""
    require(config, hidden_act="silu")
    sizes = read_sizes(config)
    return Glm4MoeConfig(
        **sizes,
        ropes=(read_rope(config, part=0.5),),
        attention_bias=config.get("attention_bias", False),
        experts=needed(config, "n_routed_experts"),
        experts_per_token=needed(config, "num_experts_per_tok"),
        expert_ffn=needed(config, "moe_intermediate_size"),
        dense_layers=min(config.get("first_k_dense_replace", 1), sizes["layers"]),
        shared_experts=config.get("n_shared_experts", 1),
        groups=config.get("n_group", 1),
        top_groups=config.get("topk_group", 1),
        normalise=config.get("norm_topk_prob", True),
        scale=float(config.get("routed_scaling_factor", 1.0)),
        qk_norm=config.get("use_qk_norm", False),
    )


def write_config(config: Glm4MoeConfig) -> dict[str, Any]:
    """A `config.json` that describes the shape."""
    return {
        "model_type": "glm4_moe",
        "architectures": ["Glm4MoeForCausalLM"],
        **write_sizes(config),
        **write_rope(config.ropes[0]),
        "partial_rotary_factor": config.ropes[0].part,
        "attention_bias": config.attention_bias,
        "use_qk_norm": config.qk_norm,
        "first_k_dense_replace": config.dense_layers,
        "n_routed_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "moe_intermediate_size": config.expert_ffn,
        "n_shared_experts": config.shared_experts,
        "n_group": config.groups,
        "topk_group": config.top_groups,
        "norm_topk_prob": config.normalise,
        "routed_scaling_factor": config.scale,
        "num_nextn_predict_layers": 0,
        "hidden_act": "silu",
    }


def tensors(config: Glm4MoeConfig) -> Tensors:
    """Where each parameter lies in a checkpoint."""
    found: dict[str, Stored] = dict(ends(config))
    for stack, dense, _ in _runs(config):
        found |= {**norms(stack), **attention(stack, bias=config.attention_bias, qk_norm=config.qk_norm)}
        found |= swiglu(stack) if dense else _mixture(stack)
    return found


def _mixture(stack: str) -> Tensors:
    return {
        **mixture(stack),
        f"{stack}/ffn/router/load_bias": Stored(f"{LAYER}.mlp.gate.e_score_correction_bias"),
        **swiglu(stack, "ffn/shared", "mlp.shared_experts"),
    }


FAMILY = Family("glm4_moe", ("glm4_moe",), read_config, write_config, build, tensors)
