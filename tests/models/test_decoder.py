from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.models.attention import masked_attention
from rl.models.base import DecoderConfig, Model, Params, Rotation
from rl.models.decoder import hidden_states
from rl.models.layers import rotate
from rl.models.llama import build
from rl.models.rope import Rope

L = 16
A, B, C = [5, 6, 7, 8, 9], [1, 2, 3], [4, 4, 11, 12, 13, 14]

Rows = list[list[list[int]]]
"""Rows of sequences of tokens."""


@pytest.fixture(scope="module")
def forward(model: Model, params: Params):
    """`forward(rows, padding, offset)`: hidden states of four rows of sequences, one list of arrays per row."""
    run = jax.jit(lambda *arrays: hidden_states(model, params, *arrays)[0])

    def forward(rows: Rows, padding: int = 0, offset: int = 0) -> list[list[np.ndarray]]:
        tokens = np.full((4, L), padding, np.int32)
        positions, segment_ids = np.zeros((2, 4, L), np.int32)
        spans = []
        for r, row in enumerate(rows):
            ends = np.cumsum([len(sequence) for sequence in row])
            spans.append([slice(end - len(sequence), end) for end, sequence in zip(ends, row, strict=True)])
            for number, (span, sequence) in enumerate(zip(spans[r], row, strict=True), start=1):
                tokens[r, span], segment_ids[r, span] = sequence, number
                positions[r, span] = np.arange(len(sequence)) + offset
        hidden = np.asarray(run(tokens, positions, segment_ids))
        assert np.isfinite(hidden).all()
        return [[hidden[r, span] for span in row] for r, row in enumerate(spans)]

    return forward


def test_packed_sequences_equal_sequences_alone(forward) -> None:
    (packed,) = forward([[A, B, C]])
    alone = [row[0] for row in forward([[A], [B], [C]])]
    for together, apart in zip(packed, alone, strict=True):
        np.testing.assert_allclose(together, apart, atol=1e-5)


def test_a_token_sees_no_later_token_and_no_other_sequence(forward) -> None:
    (first,), (_, before, _) = forward([[C], [A, B, C]])
    (changed,), (_, after, _) = forward([[[*C[:3], 99, *C[4:]]], [A[::-1], B, C[::-1]]])
    np.testing.assert_array_equal(changed[:3], first[:3])
    np.testing.assert_array_equal(after, before)
    assert (np.abs(changed[3:] - first[3:]).max(axis=1) > 1e-3).all(), "what comes after does see it"


def test_padding_may_hold_anything(forward) -> None:
    for zeros, others in zip(forward([[A, B], [C]])[0], forward([[A, B], [C]], padding=200)[0], strict=True):
        np.testing.assert_array_equal(zeros, others)


def test_only_distances_between_positions_count(forward) -> None:
    ((here,),), ((there,),) = forward([[C]]), forward([[C]], offset=9)
    np.testing.assert_allclose(here, there, atol=2e-5)
    assert np.abs(forward([[C[::-1]]])[0][0][-1] - here[0]).max() > 1e-2, "and the order does"


def test_rotation_by_hand() -> None:
    x = jnp.array([1.0, 0.0, 0.0, 2.0]).reshape(1, 1, 1, 4)  # pairs (1, 0) and (0, 2), turned by 3 and by 3 / 100
    cos, sin = Rope(theta=1e4).table(4, head_size=4)
    turned = rotate(x, Rotation(cos[None, 3:], sin[None, 3:]))
    np.testing.assert_allclose(turned.ravel(), [-0.9899925, -0.0599910, 0.1411200, 1.9991001], rtol=1e-5)


def test_grouped_attention_equals_repeated_heads() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 5, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    mask = np.broadcast_to(np.tril(np.ones((5, 5), bool)), (2, 5, 5))
    k4, v4 = np.repeat(k, 2, axis=2), np.repeat(v, 2, axis=2)
    scores = np.where(mask[:, None], np.einsum("bthd,bshd->bhts", q, k4) / np.sqrt(8), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = np.einsum("bhts,bshd->bthd", weights / weights.sum(axis=-1, keepdims=True), v4)
    found = masked_attention(
        jnp.asarray(q / np.sqrt(8).astype(np.float32)), jnp.asarray(k), jnp.asarray(v), jnp.asarray(mask)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_last_norm_by_hand(model: Model, params: Params) -> None:
    width = model.config.width
    scaled = {**params, "norm": {"scale": jnp.full(width, 3.0)}}
    x = jnp.where(jnp.arange(width) < width // 2, 4.0, 0.0)[None, None]  # mean square 8
    np.testing.assert_allclose(model.norm(scaled, x)[0, 0, 0], 3 * 4 / np.sqrt(8), rtol=1e-6)


def test_every_parameter_names_its_axes(model: Model, params: Params) -> None:
    named = jax.tree.map(
        lambda p, axes: len(axes) == p.ndim and all(isinstance(a, str) for a in axes), params, model.axes
    )
    assert all(jax.tree.leaves(named))
    layers = jax.tree.leaves(
        jax.tree.map(lambda p, axes: (axes[0], p.shape[0]), params["layers"], model.axes["layers"])
    )
    assert set(layers) == {"layers", 2}


def test_initial_scales(model: Model, params: Params) -> None:
    width = model.config.width
    assert float(params["embed"].std()) == pytest.approx(width**-0.5, rel=0.05)
    assert float(params["layers"]["attention"]["o"].std()) == pytest.approx((width * 4) ** -0.5, rel=0.1)
    assert (params["norm"]["scale"] == 1).all() and (params["layers"]["ffn_norm"]["scale"] == 1).all()


def test_a_head_of_its_own(model: Model, params: Params) -> None:
    assert "head" not in params
    assert model.head(params) is params["embed"]
    untied = build(replace(model.config, tie_embeddings=False))
    shapes = jax.eval_shape(untied.init, jax.random.key(0))
    assert untied.head(jax.tree.map(lambda s: np.zeros(s.shape), shapes)).shape == (264, 32)
    assert shapes["head"].shape == shapes["embed"].shape == (264, 32)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 30, "heads": 4}, "width 30 is not a multiple of heads 4"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"width": 12, "heads": 4}, "head size 3 is odd"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderConfig(vocab_size=8, **sizes)
