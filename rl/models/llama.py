"""Llama 3 and its relatives (also SmolLM2, Mistral, and our own small models): RMSNorm, rotary positions,
grouped-query attention, SwiGLU.

Touvron et al. 2023, arXiv:2307.09288; reference code: `LlamaForCausalLM`, `MistralForCausalLM` of Hugging Face
transformers.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from rl.models.base import Attend, DecoderConfig, Model, Observed, Rotation
from rl.models.decoder import Run, assemble
from rl.models.family import Family, Stored, Tensors, require
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
        self, x: Float[Array, "B T D"], rotation: Rotation, attend: Attend, state: Any = None
    ) -> tuple[Float[Array, "B T D"], Any, Observed]:
        attended, state = self.attention(self.attention_norm(x), rotation, attend, state)
        x = x + attended
        out, observed = self.ffn(self.ffn_norm(x))
        return x + out, state, observed


def build(config: DecoderConfig) -> Model:
    """The model of this shape."""
    return assemble(config, [Run("layers", lambda: Block(config, Attention(config), SwiGLU(config)), config.layers)])


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The shape that a `config.json` describes."""
    require(config, hidden_act="silu", attention_bias=False, mlp_bias=False)
    window = config.get("sliding_window")  # Mistral's
    layers = config["num_hidden_layers"]
    return DecoderConfig(**read_sizes(config), ropes=(read_rope(config),), windows=(window,) * layers)


def read_sizes(config: Mapping[str, Any], *, tied: bool = False) -> dict[str, Any]:
    """The arguments of `DecoderConfig` that `config.json` names alike in all families.

    Args:
        tied: whether the head is the embedding when the file does not say.
    """
    return {
        "vocab_size": config["vocab_size"],
        "layers": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "ffn": config["intermediate_size"],
        "context": config["max_position_embeddings"],
        "head_size": config.get("head_dim") or 0,
        "norm_eps": config["rms_norm_eps"],
        "tie_embeddings": config.get("tie_word_embeddings", tied),
    }


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """A `config.json` that describes the shape."""
    window = config.windows[0]
    kind: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    if window is not None:
        kind = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window}
    return {**kind, **write_sizes(config), **write_rope(config.ropes[0]), "hidden_act": "silu"}


def write_sizes(config: DecoderConfig) -> dict[str, Any]:
    """What `read_sizes` reads."""
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.context,
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


def tensors(config: DecoderConfig) -> Tensors:
    """Where each parameter lies in a checkpoint."""
    return {**ends(config), **attention("layers"), **swiglu("layers")}


def ends(config: DecoderConfig) -> Tensors:
    """Embeddings, last norm and head."""
    head = {} if config.tie_embeddings else {"head": Stored("lm_head.weight")}
    return {"embed": Stored("model.embed_tokens.weight"), "norm/scale": Stored("model.norm.weight"), **head}


def attention(stack: str) -> Tensors:
    """Norms and attention of a stack's layers."""
    names = {name: Stored(f"{LAYER}.self_attn.{name}_proj.weight", transposed=True) for name in "qkvo"}
    return {
        f"{stack}/attention_norm/scale": Stored(f"{LAYER}.input_layernorm.weight"),
        f"{stack}/ffn_norm/scale": Stored(f"{LAYER}.post_attention_layernorm.weight"),
        **{f"{stack}/attention/{name}": stored for name, stored in names.items()},
    }


def swiglu(stack: str, inner: str = "ffn", module: str = "mlp") -> Tensors:
    """A gated feed-forward layer; `inner` is its place in the parameters, `module` in the checkpoint."""
    return {
        f"{stack}/{inner}/{name}": Stored(f"{LAYER}.{module}.{name}_proj.weight", transposed=True)
        for name in ("gate", "up", "down")
    }


LAYER = "model.layers.{layer}"

FAMILY = Family("llama", ("llama", "mistral"), read_config, write_config, build, tensors)
