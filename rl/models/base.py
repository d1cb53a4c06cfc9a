"""What a model is to the rest of the code: a value of pure functions over a pytree of parameters.

Shape letters as in CONTRIBUTING: B rows, T tokens, D width, N heads, K kv heads, H head size, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

from rl.models.rope import Rope

Params = Any
"""A pytree of arrays: {"embed", "norm"[, "head"], and per `Stack` its layers, stacked on a leading [layers] axis}."""

Observed = Mapping[str, jax.Array]
"""What a block tells besides its output: a mixture of experts its choice, "experts" [B,T,k]; others nothing."""


class Rotation(NamedTuple):
    """Cosine and sine of the angle by which each pair of a head's numbers is turned, per position.

    They may turn fewer pairs than a head has; the rest of the head is left as it is.
    """

    cos: Float[Array, "B T half"]
    sin: Float[Array, "B T half"]


@runtime_checkable
class Attend(Protocol):
    """How attention sees the past: training hands in packed rows, sampling a cache. Queries come scaled."""

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, state: Any, *, sinks: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """Attends, and returns the new state beside the result.

        Args:
            q: `[B, T, N, H]`, to be multiplied with keys as they are.
            k: `[B, T, K, H]`.
            v: `[B, T, K, H]`.
            state: whatever the caller carries from layer to layer's turn: a cache, or None.
            sinks: `[N]`, a logit per head that takes part in the softmax and attends to nothing.
        """
        ...


@runtime_checkable
class Block(Protocol):
    """One layer as a pure function of its parameters (without the leading axis).

    `experts [B, T, k]` are those that each token is to go through, -1 where it chooses freely; None, and for layers
    without experts always: all do.
    """

    def __call__(
        self,
        layer: Params,
        x: jax.Array,
        rotation: Rotation,
        attend: Attend,
        state: Any,
        experts: jax.Array | None = None,
    ) -> tuple[jax.Array, Any, Observed]: ...


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of a decoder: what all families share. A family derives its own class with what only it has.

    Attributes:
        ffn: width of a dense feed-forward layer.
        context: the most tokens a sequence may have.
        head_size: 0 stands for width / heads.
        ropes: the kinds of rotary positions that its layers use.
        layer_ropes: which of `ropes` each layer uses; empty: the first.
        windows: how many tokens each layer sees, itself included (None: all before it); empty: all layers see all.
        tie_embeddings: the head is the embedding.
        attention_bias: queries, keys and values have a bias (in most families the output, too).
        ffn_bias: dense feed-forward layers have biases.
        compute_dtype: of activations and matrix products; norms, softmax and logits are float32 always.

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
    head_size: int = 0
    ropes: tuple[Rope, ...] = (Rope(),)
    layer_ropes: tuple[int, ...] = ()
    windows: tuple[int | None, ...] = ()
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    attention_bias: bool = False
    ffn_bias: bool = False
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.head_size:
            if self.width % self.heads:
                raise ValueError(
                    f"width {self.width} is not a multiple of heads {self.heads}; choose widths like heads * 32"
                )
            object.__setattr__(self, "head_size", self.width // self.heads)
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_size % 2:
            raise ValueError(f"head size {self.head_size} is odd; rotary positions need pairs")
        for name, default in (("layer_ropes", 0), ("windows", None)):
            if not getattr(self, name):
                object.__setattr__(self, name, (default,) * self.layers)
            if len(getattr(self, name)) != self.layers:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {self.layers} layers")


class Stack(NamedTuple):
    """Consecutive layers whose parameters have equal shapes and lie stacked on a leading axis.

    Attributes:
        name: where they lie in the parameters.
        block: what each of them computes.
        layers: their numbers within the model.
    """

    name: str
    block: Block
    layers: range


class Model(NamedTuple):
    """A decoder as a value.

    Attributes:
        config: its shape.
        init: `init(key) -> params`.
        axes: logical axis names for every parameter, as a tree of tuples shaped like `params`.
        embed: `embed(params, tokens [B,T]) -> x [B,T,D]`.
        stacks: its layers, in order.
        norm: `norm(params, x) -> x`: the last norm.
        head: `head(params) -> [V, D]`: logits are `x @ head.T`, in float32.
    """

    config: DecoderConfig
    init: Callable[[jax.Array], Params]
    axes: Params
    embed: Callable[[Params, jax.Array], jax.Array]
    stacks: tuple[Stack, ...]
    norm: Callable[[Params, jax.Array], jax.Array]
    head: Callable[[Params], jax.Array]

    def rotations(self, positions: jax.Array, length: int) -> tuple[Rotation, ...]:
        """What queries and keys are turned by, for each of `config.ropes`.

        They are looked up in a table: XLA's CPU backend fuses a cosine into whatever uses it, and so computes it again
        for every head, layer and direction, which was a tenth of an update; a gather it leaves alone.

        Args:
            positions: `[B, T]`, below `length`.
            length: rows of the table.
        """
        tables = (rope.table(length, self.config.head_size) for rope in self.config.ropes)
        return tuple(Rotation(cos[positions], sin[positions]) for cos, sin in tables)
