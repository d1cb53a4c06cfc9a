"""Rotary positions (Su et al. 2021, arXiv:2104.09864) and the ways of stretching them over longer contexts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np

Stretch = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True)
class Rope:
    """How positions become angles.

    Attributes:
        theta: base of the frequencies.
        part: share of a head's numbers that is turned.
        stretch: how frequencies are changed for contexts longer than the model was first trained on: "linear" (divide
            by `factor`), "dynamic" (NTK-aware base, fixed at `context`), "llama3" or "yarn" (Peng et al. 2023,
            arXiv:2309.00071).
        factor: how many times longer.
        original_context: tokens the model was first trained on.
        context: tokens it is used with (dynamic).
        low_freq_factor: below this many turns within the original context, a frequency is divided in full (llama3).
        high_freq_factor: above it, it stays (llama3).
        beta_fast: turns above which a frequency stays (yarn).
        beta_slow: turns below which it is divided in full (yarn).
        attention_factor: multiplies cosine and sine; None lets the stretch decide (yarn).
        mscale: yarn's attention factor with `mscale_all_dim`, as DeepSeek has it; 0 is unset.
        mscale_all_dim: see `mscale`.
        truncate: round the bounds of yarn's ramp to whole pairs.
    """

    theta: float = 10_000.0
    part: float = 1.0
    stretch: Stretch = "default"
    factor: float = 1.0
    original_context: int = 0
    context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True

    def table(self, length: int, head_size: int) -> tuple[jax.Array, jax.Array]:
        """Cosine and sine for positions below `length`: two arrays `[length, turned pairs]`, in float32."""
        frequencies, scale = self.frequencies(head_size)
        angle = jnp.arange(length, dtype=jnp.float32)[:, None] * jnp.asarray(frequencies)[None]
        return jnp.cos(angle) * scale, jnp.sin(angle) * scale

    def frequencies(self, head_size: int) -> tuple[np.ndarray, float]:
        """Radians per position for each turned pair, in float32, and what cosine and sine are multiplied by."""
        turned = int(head_size * self.part)
        theta = self.theta
        if self.stretch == "dynamic" and self.context > self.original_context:
            grown = self.factor * self.context / self.original_context - (self.factor - 1)
            theta *= grown ** (turned / (turned - 2))
        plain = 1.0 / theta ** (np.arange(0, turned, 2) / turned)
        stretched, scale = plain, 1.0
        if self.stretch == "linear":
            stretched = plain / self.factor
        elif self.stretch == "llama3":
            stretched = self._llama3(plain)
        elif self.stretch == "yarn":
            stretched, scale = self._yarn(plain, turned, theta), self._yarn_scale()
        return stretched.astype(np.float32), scale

    def _llama3(self, plain: np.ndarray) -> np.ndarray:
        """Slow pairs are divided, fast ones stay, those between are blended."""
        turns = self.original_context * plain / (2 * math.pi)
        keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        keep = np.clip(keep, 0.0, 1.0)
        return np.asarray((1 - keep) * plain / self.factor + keep * plain)

    def _yarn(self, plain: np.ndarray, turned: int, theta: float) -> np.ndarray:
        def pair_of(turns: float) -> float:
            """The (fractional) number of the pair that makes so many turns in the original context."""
            return turned * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = pair_of(self.beta_fast), pair_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, turned - 1)
        high = high + 0.001 if low == high else high
        divide = np.clip((np.arange(turned // 2) - low) / (high - low), 0.0, 1.0)
        return np.asarray(plain / self.factor * divide + plain * (1 - divide))

    def _yarn_scale(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def _mscale(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0


def read_rope(config: Mapping[str, Any], theta: float = 10_000.0, part: float = 1.0) -> Rope:
    """The rotary positions that a `config.json` describes, in the old form (`rope_theta`, `rope_scaling`) or the new
    (`rope_parameters`).

    Args:
        config: the whole file, or any mapping with those keys.
        theta: when the file does not say.
        part: share of a head that is turned, when the file does not say.

    Raises:
        ValueError: for a kind of stretching that is not known here.
    """
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in get_args(Stretch):
        raise ValueError(f"config.json: rope type is {kind!r}; known: {', '.join(get_args(Stretch))}")
    context = config.get("max_position_embeddings", 0)
    plain = Rope(
        theta=float(given.get("rope_theta", config.get("rope_theta", theta))),
        part=float(given.get("partial_rotary_factor", config.get("partial_rotary_factor", part))),
    )
    if kind == "default":
        return plain
    return replace(
        plain,
        stretch=cast(Stretch, kind),
        factor=float(given["factor"]),
        original_context=given.get("original_max_position_embeddings") or context,
        context=context,
        **{name: given[name] for name in _KEYS.get(kind, ()) if given.get(name) is not None},
    )


def write_rope(rope: Rope) -> dict[str, Any]:
    """The keys of `config.json` that `read_rope` reads, in the old form, which every reader knows."""
    keys: dict[str, Any] = {"rope_theta": rope.theta}
    if rope.part != 1.0:
        keys["partial_rotary_factor"] = rope.part
    if rope.stretch != "default":
        keys["rope_scaling"] = {
            "rope_type": rope.stretch,
            "factor": rope.factor,
            "original_max_position_embeddings": rope.original_context,
            **{name: getattr(rope, name) for name in _KEYS.get(rope.stretch, ()) if getattr(rope, name) is not None},
        }
    return keys


_KEYS: Mapping[str, tuple[str, ...]] = {
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
}
"""What each way of stretching has besides its factor."""
