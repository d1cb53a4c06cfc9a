"""The shape of a job as a transformers model."""

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM


def llama(shape: dict[str, Any]) -> LlamaForCausalLM:
    """Random weights; no token ends anything."""
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        num_hidden_layers=shape["layers"],
        hidden_size=shape["width"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        intermediate_size=shape["ffn"],
        max_position_embeddings=shape["context"],
        rms_norm_eps=shape["norm_eps"],
        tie_word_embeddings=shape["tie_embeddings"],
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)
