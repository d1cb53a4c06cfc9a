"""Numbers and foreign text made fit to print. What models and people wrote is never trusted."""

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rl.progress import compact, duration

__all__ = ["compact", "count", "duration", "escape", "flatten", "interval", "printable", "score", "signed"]

# Control characters, directional overrides (they reorder what stands around them) and halves of surrogate pairs
# (no encoding takes them).
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    if code < 0x20:
        return chr(0x2400 + code)  # the picture of the control character
    return f"⟨U+{code:04X}⟩"


def printable(text: str) -> str:
    """Text in which control characters, directional overrides and broken surrogates are visible and harmless."""
    return _UNPRINTABLE.sub(_visible, text)


def escape(value: object) -> str:
    """Any value as text that HTML shows literally, in content and in quoted attributes."""
    return html.escape(printable(str(value)), quote=True)


def score(value: object) -> str:
    """A score with three decimals, large ones with fewer; an en dash if there is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:.3f}".replace("-", "−") if abs(value) < 1000 else compact(value).replace("-", "−")


def signed(value: object) -> str:
    """A difference of scores, always with its sign."""
    text = score(value)
    return f"+{text}" if isinstance(value, int | float) and value >= 0 else text


def interval(bounds: object, *, sign: bool = False) -> str:
    """An interval as "0.255 to 0.368"; empty if there is none."""
    if not isinstance(bounds, Sequence) or isinstance(bounds, str) or len(bounds) != 2:
        return ""
    low, high = (signed(bound) if sign else score(bound) for bound in bounds)
    return "" if "–" in (low, high) else f"{low} to {high}"


def count(number: object, unit: str) -> str:
    """`1 task`, `256 tasks`, `1,024 tasks`; the unit is given in singular."""
    if not isinstance(number, int | float):
        return f"? {unit}s"
    return f"{number:,.0f} {unit}{'' if number == 1 else 's'}"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as `{"optimizer.lr": 0.0003, …}`; empty dictionaries and lists are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
