"""What a server calls a tensor, and what is wrong when the two sides do not name the same."""

import numpy as np
import pytest

from envs.errors import ConfigError
from rl.inference.sglang.publish.names import check_names, checksums, server_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.layers.3.self_attn.q_proj.weight", "model.layers.3.self_attn.qkv_proj.weight"),
        ("model.layers.3.self_attn.v_proj.bias", "model.layers.3.self_attn.qkv_proj.bias"),
        ("model.layers.3.self_attn.o_proj.weight", "model.layers.3.self_attn.o_proj.weight"),
        ("model.layers.3.self_attn.q_norm.weight", "model.layers.3.self_attn.q_norm.weight"),
        ("model.layers.3.self_attn.sinks", "model.layers.3.self_attn.sinks"),
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.gate_up_proj.weight"),
        ("model.layers.3.mlp.down_proj.weight", "model.layers.3.mlp.down_proj.weight"),
        ("model.layers.3.mlp.gate.weight", "model.layers.3.mlp.gate.weight"),
        ("model.layers.3.mlp.experts.11.gate_proj.weight", "model.layers.3.mlp.experts.w13_weight"),
        ("model.layers.3.mlp.experts.11.down_proj.weight", "model.layers.3.mlp.experts.w2_weight"),
        ("model.layers.3.mlp.experts.gate_up_proj", "model.layers.3.mlp.experts.w13_weight"),
        ("model.layers.3.mlp.experts.down_proj_bias", "model.layers.3.mlp.experts.w2_weight_bias"),
        ("model.layers.3.mlp.shared_experts.up_proj.weight", "model.layers.3.mlp.shared_experts.gate_up_proj.weight"),
    ],
)
def test_a_server_keeps_some_tensors_together_under_another_name(name: str, expected: str) -> None:
    assert server_name(name) == expected


def test_the_same_names_on_both_sides_pass_with_what_servers_work_out_themselves() -> None:
    found = {"model.embed_tokens.weight", "model.layers.0.self_attn.qkv_proj.weight", "model.rotary_emb.cos_sin_cache"}
    sent = ["model.embed_tokens.weight", *(f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv")]
    check_names(sent, found, "http://a:1")


def test_a_server_that_can_hold_adapters_names_what_they_stand_beside() -> None:
    sent = ["model.layers.0.self_attn.o_proj.weight", *(f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv")]
    found = [f"model.layers.0.self_attn.{name}.base_layer.weight" for name in ("qkv_proj", "o_proj")]
    check_names(sent, found, "http://a:1")


def test_an_unknown_and_a_missing_name_are_one_error() -> None:
    found = ["model.embed_tokens.weight", "model.norm.weight"]
    with pytest.raises(ConfigError) as error:
        check_names(["model.embed_tokens.weight", "model.norn.weight"], found, "http://a:1")
    assert str(error.value) == (
        "the server at http://a:1 does not hold the model that is trained: it has no model.norn.weight, which would be "
        "sent; nothing would be sent for its model.norm.weight. It would take them without complaint and sample from "
        "something else; start it with this model"
    )


def test_of_many_names_the_first_are_told() -> None:
    with pytest.raises(ConfigError, match=r"layers\.0\.a.*layers\.7\.a and 2 more, which"):
        check_names([f"layers.{n}.a" for n in range(10)], [], "http://a:1")


def test_checksums_are_those_of_fused_matrices() -> None:
    ones, twos = np.ones((1, 2), np.float32), np.full((1, 2), 2, np.float32)
    found = checksums([("a.gate_proj.weight", ones), ("a.up_proj.weight", twos), ("norm.weight", ones[0])])
    # python -c 'import hashlib, struct; print(hashlib.sha256(struct.pack("<4f", 1, 1, 2, 2)).hexdigest()[:16])'
    assert found == {"a.gate_up_proj.weight": "aa5b3e0ef3e85eb1", "norm.weight": "80b8fd6d60fa85fd"}
