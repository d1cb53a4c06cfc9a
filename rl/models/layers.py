"""The parts that decoders are made of, as flax nnx modules. A family composes its block from them.

A feed-forward part returns its output and what it observed (see `Observed`). Modules are only ever built abstractly, as
places for weights: `assemble` in `rl.models.decoder` splits them into a graph and a pytree once, and `Model.init` draws
the numbers. Weights keep head axes, so that a mesh can split heads.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rl.models.base import Attend, DecoderConfig, Observed, Rotation
from rl.models.lora import Adapted
from rl.models.quantize import Quantized
from rl.models.turned import Turned

Activation = Callable[[jax.Array], jax.Array]
FeedForward = Callable[..., tuple[jax.Array, Observed]]
"""`ffn(x [B,T,D])`, and with experts also `ffn(x, given [B,T,k])`: see `Block`."""


def weight(shape: tuple[int, ...], axes: tuple[str, ...], std: float | None) -> nnx.Param[jax.Array]:
    """A place for a weight with its logical axes; `std` is of its first values, None starts at one, 0 at zero."""
    return nnx.Param(jnp.zeros(shape), axes=axes, std=std)


class RMSNorm(nnx.Module):
    """Root mean square norm over the last axis, in float32 (Zhang and Sennrich 2019, arXiv:1910.07467).

    Args:
        size: of the last axis.
        eps: added to the mean square.
        axis: its logical name.
        offset: added to the scale. Gemma stores scales around 0 and adds 1.
    """

    def __init__(self, size: int, eps: float, *, axis: str = "embed", offset: float = 0.0) -> None:
        self.scale = weight((size,), (axis,), None if offset == 0 else 0.0)
        self.eps = eps
        self.offset = offset

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        scale = scale + self.offset if self.offset else scale
        return (normed * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention: projections and rotation around `attend`.

    Args:
        config: sizes.
        scale: of the scores; None is `head_size ** -0.5`.
        bias: queries, keys and values have one.
        out_bias: the output has one.
        qk_norm: makes the norm that queries and keys go through per head before they are turned; None: no norm.
        sinks: every head has a learned logit that attends to nothing (gpt-oss).
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        scale: float | None = None,
        bias: bool = False,
        out_bias: bool = False,
        qk_norm: Callable[[], RMSNorm] | None = None,
        sinks: bool = False,
    ) -> None:
        D, N, K, H = config.width, config.heads, config.kv_heads, config.head_size
        std = D**-0.5
        self.q = weight((D, N, H), ("embed", "heads", "head"), std)
        self.k = weight((D, K, H), ("embed", "kv_heads", "head"), std)
        self.v = weight((D, K, H), ("embed", "kv_heads", "head"), std)
        self.o = weight((N, H, D), ("heads", "head", "embed"), std * (2 * config.layers) ** -0.5)
        if bias:
            self.q_bias = weight((N, H), ("heads", "head"), 0.0)
            self.k_bias = weight((K, H), ("kv_heads", "head"), 0.0)
            self.v_bias = weight((K, H), ("kv_heads", "head"), 0.0)
        if out_bias:
            self.o_bias = weight((D,), ("embed",), 0.0)
        if qk_norm is not None:
            self.q_norm, self.k_norm = qk_norm(), qk_norm()
        if sinks:
            self.sinks = weight((N,), ("heads",), 0.0)
        self.scale = H**-0.5 if scale is None else scale
        self.bias, self.out_bias, self.has_sinks = bias, out_bias, sinks
        self.qk_norm = qk_norm is not None

    def __call__(
        self, x: Float[Array, "B T D"], rotation: Rotation, attend: Attend, state: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        q, k, v = (project(x, w[...]) for w in (self.q, self.k, self.v))
        if self.bias:
            q, k, v = (
                add_bias(y, b[...]) for y, b in zip((q, k, v), (self.q_bias, self.k_bias, self.v_bias), strict=True)
            )
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q, rotation) * self.scale
        sinks = self.sinks[...] if self.has_sinks else None
        out, state = attend(q, rotate(k, rotation), v, state, sinks=sinks)
        out = project(out, self.o[...], inputs=2)
        return (add_bias(out, self.o_bias[...]) if self.out_bias else out), state


class SwiGLU(nnx.Module):
    """A gated feed-forward layer (Shazeer 2020, arXiv:2002.05202): `down(activation(gate(x)) * up(x))`.

    Args:
        config: sizes.
        ffn: its width; None is the config's.
        activation: of the gate.
        bias: all three products have one.
    """

    def __init__(
        self,
        config: DecoderConfig,
        ffn: int | None = None,
        activation: Activation = jax.nn.silu,
        *,
        bias: bool = False,
    ) -> None:
        D, F = config.width, config.ffn if ffn is None else ffn
        self.gate = weight((D, F), ("embed", "ffn"), D**-0.5)
        self.up = weight((D, F), ("embed", "ffn"), D**-0.5)
        self.down = weight((F, D), ("ffn", "embed"), F**-0.5 * (2 * config.layers) ** -0.5)
        if bias:
            self.gate_bias, self.up_bias = weight((F,), ("ffn",), 0.0), weight((F,), ("ffn",), 0.0)
            self.down_bias = weight((D,), ("embed",), 0.0)
        self.activation = activation
        self.bias = bias

    def __call__(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T D"], Observed]:
        gate, up = project(x, self.gate[...]), project(x, self.up[...])
        if self.bias:
            gate, up = add_bias(gate, self.gate_bias[...]), add_bias(up, self.up_bias[...])
        out = project(self.activation(gate) * up, self.down[...])
        return (add_bias(out, self.down_bias[...]) if self.bias else out), {}


def project(
    x: Float[Array, "B T *inputs"], weight: Float[Array, "..."] | Quantized | Adapted | Turned, inputs: int = 1
) -> Float[Array, "B T *outputs"]:
    """Contracts the last `inputs` axes of `x` with the first of `weight`.

    Written as one product of matrices, `[B*T, …] @ […, …]`: for `[B, T, …]` XLA's CPU backend fuses a transposition
    into the elementwise work before each weight's gradient, which made a feed-forward layer cost 1.8 times as much.
    """
    if isinstance(weight, Adapted):
        added = project(project(x, weight.a, inputs), weight.b)
        return project(x, weight.base, inputs) + weight.scale * added
    if isinstance(weight, Quantized):
        # The backward pass reads it back again: kept, it would take the memory that quantising saved.
        return jax.checkpoint(lambda x, weight: project(x, weight.dense(), inputs))(x, weight)
    width, outputs = math.prod(weight.shape[:inputs]), weight.shape[inputs:]
    if isinstance(weight, Turned):
        return weight.after(x.reshape(-1, width)).reshape(*x.shape[:-inputs], *outputs)
    flat = x.reshape(-1, width) @ weight.astype(x.dtype).reshape(width, -1)
    return flat.reshape(*x.shape[:-inputs], *outputs)


def add_bias(x: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    """Adds `bias` to the last axes of `x`, in the dtype of `x`."""
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def rotate(x: Float[Array, "B T N H"], rotation: Rotation) -> Float[Array, "B T N H"]:
    """Turns the first pairs of each head, as many as `rotation` has; halves paired as in Llama's reference code."""
    cos, sin = rotation.cos[:, :, None], rotation.sin[:, :, None]
    turned = 2 * cos.shape[-1]
    a, b = jnp.split(x[..., :turned].astype(jnp.float32), 2, axis=-1)
    halves = [(a * cos - b * sin).astype(x.dtype), (b * cos + a * sin).astype(x.dtype)]
    return jnp.concatenate([*halves, x[..., turned:]] if turned < x.shape[-1] else halves, axis=-1)
