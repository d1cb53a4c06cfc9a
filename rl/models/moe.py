"""Mixtures of experts: routers as pure functions, and experts that every token reaches (none is dropped).

Tokens are sorted by their expert, so that each expert's are one block of rows, and `jax.lax.ragged_dot` multiplies
every block with its own matrix. Shape letters: M tokens, E experts, k experts of a token.
"""

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rl.models.base import DecoderConfig, Observed, Params
from rl.models.layers import Activation, SwiGLU, weight
from rl.models.lora import Adapted
from rl.models.quantize import Quantized


@dataclass(frozen=True, kw_only=True)
class MoeConfig(DecoderConfig):
    """The shape of a decoder with experts.

    Attributes:
        experts: in a layer.
        experts_per_token: that a token goes through.
        expert_ffn: width of each.
    """

    experts: int
    experts_per_token: int
    expert_ffn: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.experts_per_token <= self.experts:
            raise ValueError(f"a token goes through {self.experts_per_token} experts, but there are {self.experts}")


class Routed(NamedTuple):
    """Which experts tokens go through, and what the results are multiplied by."""

    experts: Int[Array, "M k"]
    weights: Float[Array, "M k"]


Given = Int[Array, "M k"] | None
"""The experts that tokens are to go through, whatever their router prefers; -1 throughout for a token that chooses
freely. None: all do."""

Choose = Callable[[jax.Array, jax.Array | None, jax.Array | None], Routed]
"""`choose(logits [M, E], load_bias [E] or None, given [M, k] or None) -> Routed`, in float32. Weights come from
the logits of the experts gone through, chosen or given, so that gradients reach the router either way."""


def softmax_top_k(
    logits: Float[Array, "M E"], load_bias: None = None, given: Given = None, *, k: int, normalise: bool
) -> Routed:
    """The likeliest experts (Qwen3).

    Args:
        logits: of the router.
        load_bias: there is none.
        given: experts to go through instead.
        k: experts of a token.
        normalise: let the weights of the chosen ones sum to one.
    """
    if normalise:  # the same numbers, and no division by nothing where what is given is unlikely
        return top_k_softmax(logits, None, given, k=k)
    values, chosen = _best(jax.nn.softmax(logits, axis=-1), given, k)
    return Routed(chosen, values)


def top_k_softmax(logits: Float[Array, "M E"], load_bias: None = None, given: Given = None, *, k: int) -> Routed:
    """The experts with the highest logits, weighted by a softmax over those alone (gpt-oss)."""
    values, chosen = _best(logits, given, k)
    return Routed(chosen, jax.nn.softmax(values, axis=-1))


def sigmoid_top_k(
    logits: Float[Array, "M E"],
    load_bias: Float[Array, "E"],
    given: Given = None,
    *,
    k: int,
    groups: int,
    top_groups: int,
    normalise: bool,
    scale: float,
) -> Routed:
    """Each expert scored by itself, and chosen within the best groups of experts (DeepSeek-V3, arXiv:2412.19437; GLM).

    Args:
        logits: of the router.
        load_bias: added to the scores for the choice, and only for it; has no gradient.
        given: experts to go through instead.
        k: experts of a token.
        groups: equal parts of the experts, in order; a group is as good as its two best experts together.
        top_groups: how many of them a token may choose from.
        normalise: let the weights of the chosen ones sum to one.
        scale: multiplies the weights.
    """
    scores = jax.nn.sigmoid(logits)
    wanted = scores + jax.lax.stop_gradient(load_bias)[None]
    if top_groups < groups:
        M, E = wanted.shape
        grouped = wanted.reshape(M, groups, E // groups)
        _, best = jax.lax.top_k(jax.lax.top_k(grouped, min(2, E // groups))[0].sum(axis=-1), top_groups)
        allowed = (best[:, :, None] == jnp.arange(groups)[None, None]).any(axis=1)
        wanted = jnp.where(allowed[:, :, None], grouped, -jnp.inf).reshape(M, E)
    _, chosen = _best(wanted, given, k)
    weights = jnp.take_along_axis(scores, chosen, axis=-1)
    if normalise:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return Routed(chosen, weights * scale)


def _best(values: Float[Array, "M E"], given: Given, k: int) -> tuple[Float[Array, "M k"], Int[Array, "M k"]]:
    """The values and numbers of the best `k`, or of those that are given."""
    best, chosen = jax.lax.top_k(values, k)
    if given is None:
        return best, chosen
    chosen = jnp.where(given >= 0, given.astype(chosen.dtype), chosen)
    return jnp.take_along_axis(values, chosen, axis=-1), chosen


class Router(nnx.Module):
    """Scores experts, in float32.

    Args:
        config: sizes.
        choose: from logits to experts.
        bias: logits have one.
        load_bias: the choice has one, which no gradient reaches and no optimizer may touch: `balance` moves it.
    """

    def __init__(self, config: MoeConfig, choose: Choose, *, bias: bool = False, load_bias: bool = False) -> None:
        self.weight = weight((config.width, config.experts), ("embed", "experts"), config.width**-0.5)
        if bias:
            self.bias = weight((config.experts,), ("experts",), 0.0)
        if load_bias:
            self.load_bias = weight((config.experts,), ("experts",), 0.0)
        self.choose = choose
        self.has_bias, self.has_load_bias = bias, load_bias

    def __call__(self, x: Float[Array, "M D"], given: Given = None) -> Routed:
        logits = x.astype(jnp.float32) @ self.weight[...].astype(jnp.float32)
        if self.has_bias:
            logits = logits + self.bias[...].astype(jnp.float32)[None]
        return self.choose(logits, self.load_bias[...].astype(jnp.float32) if self.has_load_bias else None, given)


class Experts(nnx.Module):
    """As many `SwiGLU`s as there are experts; a row goes through its own."""

    def __init__(self, config: MoeConfig, activation: Activation = jax.nn.silu) -> None:
        E, D, F = config.experts, config.width, config.expert_ffn
        self.gate = weight((E, D, F), ("experts", "embed", "ffn"), D**-0.5)
        self.up = weight((E, D, F), ("experts", "embed", "ffn"), D**-0.5)
        self.down = weight((E, F, D), ("experts", "ffn", "embed"), F**-0.5 * (2 * config.layers) ** -0.5)
        self.activation = activation

    def __call__(
        self, rows: Float[Array, "M D"], sizes: Int[Array, "E"], experts: Int[Array, "M"]
    ) -> Float[Array, "M D"]:
        inner = self.activation(grouped(rows, self.gate[...], sizes)) * grouped(rows, self.up[...], sizes)
        return grouped(inner, self.down[...], sizes)


class Mixture(nnx.Module):
    """A feed-forward layer of experts, and beside them what every token goes through.

    Args:
        router: chooses experts.
        experts: `experts(rows [M,D], sizes [E], expert of each row [M]) -> [M,D]`, of rows sorted by expert.
        shared: added to what the experts make of a token; None: nothing.
    """

    def __init__(self, router: Router, experts: Callable[..., jax.Array], shared: SwiGLU | None = None) -> None:
        self.router = router
        self.experts = experts
        if shared is not None:
            self.shared = shared
        self.has_shared = shared is not None

    def __call__(
        self, x: Float[Array, "B T D"], given: Int[Array, "B T k"] | None = None
    ) -> tuple[Float[Array, "B T D"], Observed]:
        B, T, D = x.shape
        flat = x.reshape(B * T, D)
        routed = self.router(flat, None if given is None else given.reshape(B * T, -1))
        count = self.router.weight.shape[-1]
        out = through_experts(flat, routed, count, self.experts).reshape(B, T, D)
        if self.has_shared:
            out = out + self.shared(x)[0]
        return out, {"experts": routed.experts.reshape(B, T, -1)}


def through_experts(
    x: Float[Array, "M D"], routed: Routed, count: int, experts: Callable[..., jax.Array]
) -> Float[Array, "M D"]:
    """The weighted sum of what its experts make of each token."""
    M, k = routed.experts.shape
    chosen = routed.experts.reshape(-1)
    order = jnp.argsort(chosen)
    sizes = jnp.bincount(chosen, length=count).astype(jnp.int32)
    out = experts(x[order // k], sizes, chosen[order])
    apart = out[jnp.argsort(order)].reshape(M, k, -1).astype(jnp.float32)
    return (apart * routed.weights[:, :, None]).sum(axis=1).astype(x.dtype)


def grouped(
    rows: Float[Array, "M I"], weights: Float[Array, "E I O"] | Quantized | Adapted, sizes: Int[Array, "E"]
) -> Float[Array, "M O"]:
    """Multiplies the first `sizes[0]` rows with the first matrix, the next with the next, and so on."""
    if isinstance(weights, Adapted):
        added = grouped(grouped(rows, weights.a, sizes), weights.b, sizes)
        return grouped(rows, weights.base, sizes) + weights.scale * added
    if isinstance(weights, Quantized):  # read back in the backward pass: see `project`
        return jax.checkpoint(lambda rows, weights: grouped(rows, weights.dense(), sizes))(rows, weights)
    return jax.lax.ragged_dot(rows, weights.astype(rows.dtype), sizes)


def runs_of(layers: int, dense: Collection[int]) -> list[tuple[str, bool, range]]:
    """Consecutive layers of one kind: where they lie in the parameters, whether they are dense, and their numbers."""
    kinds = itertools.groupby(range(layers), key=lambda layer: layer in dense)
    runs = [(is_dense, list(numbers)) for is_dense, numbers in kinds]
    return [
        (
            "layers" if len(runs) == 1 else f"{'dense' if is_dense else 'sparse'}_{numbers[0]}",
            is_dense,
            range(numbers[0], numbers[-1] + 1),
        )
        for is_dense, numbers in runs
    ]


def loads(
    observed: Mapping[str, Observed], segment_ids: Int[Array, "R L"], count: int
) -> dict[str, Float[Array, "layers E"]]:
    """How many tokens each expert of each layer was given, padding left out, per stack.

    Args:
        observed: by the blocks of each stack: `experts [layers, R, L, k]`.
        segment_ids: 0 is padding.
        count: experts in a layer.
    """
    real = segment_ids > 0

    def load(experts: jax.Array) -> jax.Array:
        hits = (experts[..., None] == jnp.arange(count)[None, None, None, None]) & real[None, :, :, None, None]
        return hits.sum(axis=(1, 2, 3)).astype(jnp.float32)

    return {stack: load(seen["experts"]) for stack, seen in observed.items() if "experts" in seen}


def max_load(found: Mapping[str, Float[Array, "layers E"]]) -> Float[Array, ""]:
    """The load of the busiest expert over that of an average one, mean over layers: 1 is perfect balance."""
    every = jnp.concatenate(list(found.values()))
    return (every.max(axis=1) / jnp.maximum(every.mean(axis=1), 1e-9)).mean()


def balance(params: Params, found: Mapping[str, Float[Array, "layers E"]], rate: Float[Array, ""] | float) -> Params:
    """Moves every load bias: up by `rate` for experts with less than the mean load, down for those with more.

    Balances experts without an auxiliary loss (Wang et al. 2024, arXiv:2408.15664, algorithm 1).

    Args:
        params: with stacks whose routers may have a `load_bias`.
        found: from `loads`.
        rate: the paper's u; 0 changes nothing.
    """
    moved = dict(params)
    for stack, load in found.items():
        router = params.get(stack, {}).get("ffn", {}).get("router", {})
        if "load_bias" not in router:
            continue
        step = rate * jnp.sign(load.mean(axis=1, keepdims=True) - load)
        bias = (router["load_bias"] + step).astype(router["load_bias"].dtype)
        ffn = {**params[stack]["ffn"], "router": {**router, "load_bias": bias}}
        moved[stack] = {**params[stack], "ffn": ffn}
    return moved
