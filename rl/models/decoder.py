"""A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU (the Llama recipe).

The modules are flax nnx, used functionally: `build` splits them once into a static graph and a plain pytree of
parameters, with the layers stacked on a leading axis so that the compiled program does not grow with depth. A block
does not know how attention sees the past: it is handed `attend`, so that training (packed rows) and sampling (a cache)
run the very same arithmetic.

Shape letters as in CONTRIBUTING: B rows, T tokens, D width, N heads, K kv heads, H head size, V vocabulary.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

Params = Any
"""A pytree of arrays: {"embed", "layers": {… stacked on a leading [layers] axis}, "norm"[, "head"]}."""

Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
"""(q [B,T,N,H], k [B,T,K,H], v [B,T,K,H], state) -> (out [B,T,N,H], new state)."""


UNROLLED_LAYERS = 4
"""Up to this depth the layers stand one after the other in the compiled program, instead of in a loop."""


class Rotation(NamedTuple):
    """Cosine and sine of the angle by which each pair of a head's numbers is turned, per position."""

    cos: Float[Array, "B T half"]
    sin: Float[Array, "B T half"]


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder.

    Raises:
        ValueError: when the sizes do not fit each other.
    """

    vocab_size: int
    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 384
    context: int = 256
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads}; choose widths like heads * 32"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if (self.width // self.heads) % 2:
            raise ValueError(f"head size {self.width // self.heads} is odd; rotary positions need pairs")

    @property
    def head_size(self) -> int:
        return self.width // self.heads


def _weight(shape: tuple[int, ...], axes: tuple[str, ...], std: float) -> nnx.Param[jax.Array]:
    """A place for a weight: modules are only ever built abstractly; `Model.init` draws the numbers."""
    return nnx.Param(jnp.zeros(shape), axes=axes, std=std)


@dataclass(frozen=True)
class _Place:
    """What is known of a parameter before it has a value; `std` None means it starts at one."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    std: float | None

    def stacked(self, layers: int) -> "_Place":
        return _Place((layers, *self.shape), ("layers", *self.axes), self.std)


class RMSNorm(nnx.Module):
    def __init__(self, width: int, eps: float) -> None:
        self.scale = nnx.Param(jnp.zeros(width), axes=("embed",), std=None)
        self.eps = eps

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (normed * self.scale[...][None, None]).astype(x.dtype)


class Attention(nnx.Module):
    """Projections around `attend`; weights keep a head axis so that a mesh can split heads."""

    def __init__(self, config: DecoderConfig) -> None:
        D, N, K, H = config.width, config.heads, config.kv_heads, config.head_size
        scale = D**-0.5
        self.q = _weight((D, N, H), ("embed", "heads", "head"), scale)
        self.k = _weight((D, K, H), ("embed", "kv_heads", "head"), scale)
        self.v = _weight((D, K, H), ("embed", "kv_heads", "head"), scale)
        self.o = _weight((N, H, D), ("heads", "head", "embed"), scale * (2 * config.layers) ** -0.5)

    def __call__(
        self, x: Float[Array, "B T D"], rotation: Rotation, attend: Attend, state: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        q, k, v = (project(x, w[...]) for w in (self.q, self.k, self.v))
        out, state = attend(rotate(q, rotation), rotate(k, rotation), v, state)
        return project(out, self.o[...], inputs=2), state


class SwiGLU(nnx.Module):
    def __init__(self, config: DecoderConfig) -> None:
        D, F = config.width, config.ffn
        self.gate = _weight((D, F), ("embed", "ffn"), D**-0.5)
        self.up = _weight((D, F), ("embed", "ffn"), D**-0.5)
        self.down = _weight((F, D), ("ffn", "embed"), F**-0.5 * (2 * config.layers) ** -0.5)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return project(jax.nn.silu(project(x, self.gate[...])) * project(x, self.up[...]), self.down[...])


class Block(nnx.Module):
    def __init__(self, config: DecoderConfig) -> None:
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.width, config.norm_eps)
        self.ffn = SwiGLU(config)

    def __call__(
        self, x: Float[Array, "B T D"], rotation: Rotation, attend: Attend, state: Any = None
    ) -> tuple[Float[Array, "B T D"], Any]:
        attended, state = self.attention(self.attention_norm(x), rotation, attend, state)
        x = x + attended
        return x + self.ffn(self.ffn_norm(x)), state


class Embedding(nnx.Module):
    """Token embeddings, the last norm, and the head (tied to the embeddings or its own)."""

    def __init__(self, config: DecoderConfig) -> None:
        V, D = config.vocab_size, config.width
        self.embed = _weight((V, D), ("vocab", "embed"), D**-0.5)
        self.norm = RMSNorm(D, config.norm_eps)
        if not config.tie_embeddings:
            self.head = _weight((V, D), ("vocab", "embed"), D**-0.5)


class Model(NamedTuple):
    """A decoder as a value: pure functions over a pytree of parameters.

    Attributes:
        config: its shape.
        init: `init(key) -> params`.
        axes: logical axis names for every parameter, as a tree of tuples shaped like `params`.
        embed: `embed(params, tokens [B,T]) -> x [B,T,D]`.
        rotation: `rotation(positions [B,T], length) -> Rotation`: what every layer turns queries and keys by; positions
            are below `length`.
        block: `block(layer_params, x, rotation, attend, state) -> (x, state)`: one layer, without the leading axis.
        norm: `norm(params, x) -> x`: the last norm.
        head: `head(params) -> [V, D]`: logits are `x @ head.T`, in float32.
    """

    config: DecoderConfig
    init: Callable[[jax.Array], Params]
    axes: Params
    embed: Callable[[Params, jax.Array], jax.Array]
    rotation: Callable[[jax.Array, int], Rotation]
    block: Callable[..., tuple[jax.Array, Any]]
    norm: Callable[[Params, jax.Array], jax.Array]
    head: Callable[[Params], jax.Array]


def build(config: DecoderConfig) -> Model:
    """The decoder of this shape. Nothing is allocated until `init` is called."""

    ends_graph, ends_state = nnx.split(nnx.eval_shape(lambda: Embedding(config)))
    block_graph, block_state = nnx.split(nnx.eval_shape(lambda: Block(config)))
    ends_places, block_places = _places(ends_state), _places(block_state)
    places = {**ends_places, "layers": jax.tree.map(lambda p: p.stacked(config.layers), block_places)}

    def init(key: jax.Array) -> Params:
        # One draw for all weights: a random program per shape takes XLA seconds to compile.
        leaves, treedef = jax.tree.flatten(places)
        ends = list(itertools.accumulate(math.prod(p.shape) for p in leaves))
        noise = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])
        values = [
            jnp.ones(p.shape) if p.std is None else p.std * x.reshape(p.shape)
            for p, x in zip(leaves, noise, strict=True)
        ]
        return jax.tree.unflatten(treedef, values)

    dtype = jnp.dtype(config.compute_dtype)

    def ends(params: Params) -> Embedding:
        state = {name: value for name, value in params.items() if name != "layers"}
        return nnx.merge(ends_graph, nnx.State(state))

    def embed(params: Params, tokens: jax.Array) -> jax.Array:
        return params["embed"][tokens].astype(dtype)

    def block(layer: Params, x: jax.Array, rotation: Rotation, attend: Attend, state: Any) -> tuple[jax.Array, Any]:
        return nnx.merge(block_graph, nnx.State(layer))(x, rotation, attend, state)

    def head(params: Params) -> jax.Array:
        return jnp.asarray(params["embed" if config.tie_embeddings else "head"])

    axes = jax.tree.map(lambda p: p.axes, places)
    turn = partial(rotation, head_size=config.head_size, theta=config.rope_theta)
    return Model(config, init, axes, embed, turn, block, lambda params, x: ends(params).norm(x), head)


def hidden_states(
    model: Model,
    params: Params,
    tokens: Int[Array, "R L"],
    positions: Int[Array, "R L"],
    segment_ids: Int[Array, "R L"],
    *,
    remat: bool = False,
) -> Float[Array, "R L D"]:
    """Runs packed rows through all layers; a token sees earlier tokens of its own segment only.

    Args:
        segment_ids: 0 is padding; equal positive ids within a row belong together.
        remat: recompute activations in the backward pass instead of keeping them.
    """
    causal = jnp.tril(jnp.ones((tokens.shape[1], tokens.shape[1]), bool))
    mask = causal[None] & (segment_ids[:, :, None] == segment_ids[:, None, :])

    turned = model.rotation(positions, tokens.shape[1])

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, state: None) -> tuple[jax.Array, None]:
        return _causal_attention(q, k, v, mask), state

    def layer(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
        return model.block(weights, x, turned, attend, None)

    # A loop copies what each layer keeps for the backward pass into stacks: a tenth of an update of four layers. Four
    # layers written out compile no slower than the loop; deep models loop, so that they compile no slower either.
    unroll = model.config.layers <= UNROLLED_LAYERS
    step = jax.checkpoint(layer) if remat else layer
    x, _ = jax.lax.scan(step, model.embed(params, tokens), params["layers"], unroll=unroll)
    return model.norm(params, x)


def project(
    x: Float[Array, "B T *inputs"], weight: Float[Array, "..."], inputs: int = 1
) -> Float[Array, "B T *outputs"]:
    """Contracts the last `inputs` axes of `x` with the first of `weight`.

    Written as one product of matrices, `[B*T, …] @ […, …]`: for `[B, T, …]` XLA's CPU backend fuses a transposition
    into the elementwise work before each weight's gradient, which made a feed-forward layer cost 1.8 times as much.
    """
    width, outputs = math.prod(weight.shape[:inputs]), weight.shape[inputs:]
    flat = x.reshape(-1, width) @ weight.astype(x.dtype).reshape(width, -1)
    return flat.reshape(*x.shape[:-inputs], *outputs)


def rotation(positions: Int[Array, "B T"], length: int, head_size: int, theta: float) -> Rotation:
    """Angles of rotary position embeddings (Su et al. 2021, arXiv:2104.09864), for positions below `length`.

    They are looked up in a table: XLA's CPU backend fuses a cosine into whatever uses it, and so computes it again for
    every head, layer and direction, which was a tenth of an update; a gather it leaves alone.
    """
    half = head_size // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency[None]
    return Rotation(jnp.cos(angle)[positions], jnp.sin(angle)[positions])


def rotate(x: Float[Array, "B T N H"], rotation: Rotation) -> Float[Array, "B T N H"]:
    """Turns the pairs of each head, halves paired as in Llama's reference code."""
    cos, sin = rotation.cos[:, :, None], rotation.sin[:, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def masked_attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], mask: Array
) -> Float[Array, "B T N H"]:
    """Grouped-query attention with an explicit mask `[B, T, S]`; softmax in float32."""
    B, T, N, H = q.shape
    S, K = k.shape[1], k.shape[2]
    # The queries of a group of heads stand one below the other, so that all four products of the forward and backward
    # pass are plain batched matrix products.
    rows = (q * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, N // K * T, H)
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = jnp.einsum("BKRH,BKSH->BKRS", rows, keys).astype(jnp.float32).reshape(B, K, N // K, T, S)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1).astype(v.dtype)
    out = jnp.einsum("BKRS,BKSH->BKRH", weights.reshape(B, K, N // K * T, S), values)
    return out.reshape(B, N, T, H).transpose(0, 2, 1, 3)


def _causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`masked_attention` of rows to themselves, half of the queries at a time.

    The first half never looks beyond itself, so a quarter of the work is left out: 3 % of an update with rows of 96.
    """
    half = (q.shape[1] + 1) // 2
    first = masked_attention(q[:, :half], k[:, :half], v[:, :half], mask[:, :half, :half])
    second = masked_attention(q[:, half:], k, v, mask[:, half:])
    return jnp.concatenate([first, second], axis=1)


def _places(state: nnx.State[Any, Any]) -> Params:
    """The parameters of an abstract module as nested dictionaries of `_Place`."""
    tree: dict[Any, Any] = {}
    for path, variable in nnx.to_flat_state(state):
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        meta = variable.get_metadata()
        node[path[-1]] = _Place(variable.get_value().shape, meta["axes"], meta["std"])
    return tree
