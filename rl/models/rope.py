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
            by `factor`), "dynamic" (a base that grows with the context), "llama3" or "yarn" (Peng et al. 2023,
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
        """Radians per position for each turned pair, and what cosine and sine are multiplied by.

        In float32 and in the order of operations of Hugging Face transformers: models were trained with the rounding
        errors of these numbers, which far positions magnify.

        Its "dynamic" takes a new base whenever a longer sequence comes by, so that a token's keys depend on what is
        processed with it, and what was cached disagrees with what is recomputed. Here the base is the one for sequences
        of `context` tokens, always. Within the original context, which is all that a checkpoint's `config.json` asks
        for, both leave the frequencies as they are.
        """
        turned = int(head_size * self.part)
        theta = self.theta
        if self.stretch == "dynamic":
            theta *= (self.factor * self.context / self.original_context - (self.factor - 1)) ** (turned / (turned - 2))
        periods = np.float32(theta) ** (np.arange(0, turned, 2, dtype=np.float32) / np.float32(turned))
        plain = np.float32(1) / periods
        if self.stretch == "linear":
            return plain / np.float32(self.factor), 1.0
        if self.stretch == "llama3":
            return self._llama3(plain), 1.0
        if self.stretch == "yarn":
            return self._yarn(periods, turned), self._yarn_scale()
        return plain, 1.0

    def _llama3(self, plain: np.ndarray) -> np.ndarray:
        """Slow pairs are divided, fast ones stay, those between are blended."""
        length = np.float32(2 * math.pi) / plain  # of a turn, in tokens
        keep = (self.original_context / length - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blended = (1 - keep) * plain / self.factor + keep * plain
        return np.where(keep < 0, plain / self.factor, np.where(keep > 1, plain, blended)).astype(np.float32)

    def _yarn(self, periods: np.ndarray, turned: int) -> np.ndarray:
        def pair_of(turns: float) -> float:
            """The (fractional) number of the pair that makes so many turns in the original context."""
            return turned * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = pair_of(self.beta_fast), pair_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, turned - 1)
        high = high + 0.001 if low == high else high
        ramp = (np.arange(turned // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
        keep = 1 - np.clip(ramp, 0, 1)
        divided, plain = np.float32(1) / (np.float32(self.factor) * periods), np.float32(1) / periods
        return np.asarray(divided * (1 - keep) + plain * keep, np.float32)

    def _yarn_scale(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def _mscale(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0


def read_rope(config: Mapping[str, Any], theta: float = 10_000.0, part: float | None = None) -> Rope:
    """The rotary positions that a `config.json` describes, in the old form (`rope_theta`, `rope_scaling`) or the new
    (`rope_parameters`).

    Args:
        config: the whole file, or any mapping with those keys.
        theta: when the file does not say.
        part: share of a head that is turned, when the file does not say; None: the family turns whole heads.

    Raises:
        ValueError: for a kind of stretching that is not known here, or one that lacks a number.
    """
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in get_args(Stretch):
        raise ValueError(f"config.json: rope type is {kind!r}; known: {', '.join(get_args(Stretch))}")
    if nested := [name for name, value in given.items() if isinstance(value, Mapping)]:
        raise ValueError(
            f"config.json: rope_parameters are given per kind of layer ({', '.join(nested)}); expected one"
        )
    share = given.get("partial_rotary_factor", config.get("partial_rotary_factor", part))
    if part is None and share not in (None, 1):
        raise ValueError(f"config.json: partial_rotary_factor is {share}, but this family turns whole heads")
    plain = Rope(
        theta=float(given.get("rope_theta") or config.get("rope_theta") or theta),
        part=1.0 if share is None else float(share),
    )
    if kind == "default":
        return plain
    return replace(plain, stretch=cast(Stretch, kind), **_read_stretch(kind, given, config))


def _read_stretch(kind: str, given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a way of stretching has besides its name."""
    context, names = config.get("max_position_embeddings", 0), _KEYS[kind]
    if kind == "yarn" and not given.get("factor") and given.get(_ORIGINAL):
        given = {**given, "factor": context / given[_ORIGINAL]}
    if missing := [name for name in names if name in _REQUIRED and given.get(name) is None]:
        raise ValueError(f"config.json: rope type {kind!r} needs {', '.join(missing)}; found {', '.join(given)}")
    found = {name: given[name] for name in names if given.get(name) is not None}
    found = {name: value if name in _EXACT else float(value) for name, value in found.items()}
    if _ORIGINAL in names:
        found["original_context"] = config.get(_ORIGINAL) or found.pop(_ORIGINAL, context)
        found.pop(_ORIGINAL, None)
    if kind == "dynamic":
        found["context"] = context
    return found


def write_rope(rope: Rope) -> dict[str, Any]:
    """The keys of `config.json` that `read_rope` reads, in the old form, which every reader knows."""
    keys: dict[str, Any] = {"rope_theta": rope.theta}
    if rope.part != 1.0:
        keys["partial_rotary_factor"] = rope.part
    if rope.stretch != "default":
        found = {
            name: rope.original_context if name == _ORIGINAL else getattr(rope, name) for name in _KEYS[rope.stretch]
        }
        keys["rope_scaling"] = {
            "rope_type": rope.stretch,
            **{name: value for name, value in found.items() if value is not None},
        }
    return keys


_YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
_ORIGINAL = "original_max_position_embeddings"

_KEYS: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor", _ORIGINAL),
    "llama3": ("factor", _ORIGINAL, "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", _ORIGINAL, *_YARN, "truncate"),
}
"""What each way of stretching has in `config.json`."""

_REQUIRED = ("factor", "low_freq_factor", "high_freq_factor")
_EXACT = (_ORIGINAL, "truncate")
"""All others are floats."""
