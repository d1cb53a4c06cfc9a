"""What is compared with Hugging Face transformers: shapes, weights and tokens, made the same way on both sides.

Imported here by tests with jax and there by `reference.py` with torch, so it needs NumPy alone.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

VOCABULARY = 29
LENGTH = 40
"""Of a row: longer than every window and every original context in the cases."""


class Case(NamedTuple):
    """A small model.

    Attributes:
        config: its `config.json`.
        covers: what of its family it has, for the table in docs/models.md.
    """

    config: Mapping[str, Any]
    covers: str


def _case(model_type: str, covers: str, **keys: Any) -> Case:
    small = {
        "vocab_size": VOCABULARY,
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-3,  # large enough to be missed
        "tie_word_embeddings": False,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return Case({"model_type": model_type, **small, **keys}, covers)


_LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16},
    **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

CASES: Mapping[str, Case] = {
    "llama": _case("llama", "grouped queries, head of its own", rope_theta=500_000.0),
    "llama_tied": _case("llama", "tied head, free head size", tie_word_embeddings=True, head_dim=12),
    "llama_biases": _case("llama", "attention and feed-forward biases", attention_bias=True, mlp_bias=True),
    "llama_llama3": _case("llama", "llama3 rope", rope_theta=500_000.0, rope_scaling=_LLAMA3),
    "llama_linear": _case("llama", "linear rope", rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "llama_dynamic": _case("llama", "dynamic rope", rope_scaling={"rope_type": "dynamic", "factor": 4.0}),
    "mistral": _case("mistral", "sliding window in every layer", sliding_window=7),
    "qwen2": _case("qwen2", "biases on queries, keys, values", tie_word_embeddings=True),
    "qwen2_windows": _case(
        *("qwen2", "windows in the upper layers, yarn rope"),
        **{"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "rope_scaling": _YARN},
    ),
    "qwen3": _case("qwen3", "normed queries and keys, free head size", head_dim=16),
    "qwen3_biases": _case("qwen3", "attention biases", head_dim=8, attention_bias=True),
    "qwen3_moe": _case(
        *("qwen3_moe", "experts in every layer, weights that sum to one"),
        **{"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20},
        **{"norm_topk_prob": True},
    ),
    "qwen3_moe_mixed": _case(
        *("qwen3_moe", "dense layers in between, attention biases, a window"),
        **{"num_hidden_layers": 4, "head_dim": 8, "num_experts": 5, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 20, "norm_topk_prob": False, "attention_bias": True},
        **{"decoder_sparse_step": 2, "mlp_only_layers": [0], "use_sliding_window": True, "sliding_window": 9},
    ),
    "gemma3": _case(
        *("gemma3_text", "four norms, scaled embeddings, windows with positions of their own, linear rope"),
        **{"num_hidden_layers": 4, "head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 6},
        **{"sliding_window_pattern": 3, "tie_word_embeddings": True, "rope_theta": 1e6},
        **{"rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "glm4_moe": _case(
        *("glm4_moe", "dense first, groups of experts, balancing bias, shared experts, half-turned heads"),
        **{"num_hidden_layers": 4, "first_k_dense_replace": 2, "n_routed_experts": 8, "num_experts_per_tok": 3},
        **{"moe_intermediate_size": 20, "n_shared_experts": 2, "n_group": 4, "topk_group": 2},
        **{"routed_scaling_factor": 2.5, "norm_topk_prob": True, "use_qk_norm": True, "attention_bias": True},
        **{"partial_rotary_factor": 0.5, "head_dim": 16},
    ),
    "glm4_moe_plain": _case(
        *("glm4_moe", "one group, weights as they are, no norms of queries and keys"),
        **{"first_k_dense_replace": 1, "n_routed_experts": 5, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 20, "n_shared_experts": 1, "norm_topk_prob": False},
    ),
    "gpt_oss": _case(
        *("gpt_oss", "sinks, biases, every other layer with a window, clamped experts, yarn rope"),
        **{"head_dim": 16, "num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 8},
        **{"rope_theta": 150_000.0, "swiglu_limit": 1.0},
        **{"rope_scaling": {**_YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}},
    ),
}


class RopeCase(NamedTuple):
    """Rotary positions: the size of a head, and what a `config.json` says."""

    head_size: int
    config: Mapping[str, Any]


def _rope(head_size: int, theta: float, **scaling: Any) -> RopeCase:
    keys = {"max_position_embeddings": 65536, "rope_theta": theta}
    return RopeCase(head_size, {**keys, "rope_scaling": scaling} if scaling else keys)


_LONG_YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}

ROPES: Mapping[str, RopeCase] = {
    "default": _rope(64, 1e4),
    "default_odd": _rope(20, 1e6),
    "default_wide": _rope(256, 1e6),
    "linear": _rope(256, 1e6, rope_type="linear", factor=8.0),
    "llama3": _rope(128, 5e5, **{**_LLAMA3, "original_max_position_embeddings": 8192}),
    "yarn": _rope(128, 1e6, **_LONG_YARN),
    "yarn_untruncated": _rope(64, 1.5e5, **_LONG_YARN, truncate=False, beta_fast=24.0, beta_slow=2.0),
    "yarn_mscale": _rope(64, 1e4, **_LONG_YARN, mscale=1.0, mscale_all_dim=0.7),
    "yarn_attention": _rope(64, 1e4, **_LONG_YARN, attention_factor=1.25),
    "dynamic": _rope(64, 1e4, rope_type="dynamic", factor=4.0),
    "dynamic_beyond": _rope(64, 1e4, rope_type="dynamic", factor=4.0, original_max_position_embeddings=16384),
}
"""The last is of a sequence as long as the context, where both agree on "dynamic" (see `Rope.frequencies`)."""


def sequences() -> list[list[int]]:
    """One that fills a row, and three that fit into one together."""
    rng = np.random.RandomState(7)
    return [rng.randint(0, VOCABULARY, size).tolist() for size in (LENGTH, 5, 11, 23)]


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """The tensor of this name in a checkpoint, float32, from nothing but name and shape.

    NumPy's `RandomState` draws the same numbers in every version. Matrices keep the scale of what they are applied to,
    norms are around 1, biases are large enough to matter.
    """
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if name.endswith("norm.weight") or name.endswith("layernorm.weight"):
        noise = 1 + 0.2 * noise
    elif len(shape) == 1 or name.endswith("bias"):
        noise = 0.3 * noise
    elif "embed_tokens" in name:
        noise = 0.3 * noise  # also the head, where they are tied
    else:
        noise = noise / np.sqrt(shape[-1])
    return noise.astype(np.float32)
