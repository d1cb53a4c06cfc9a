"""Line charts as HTML and inline SVG, without a library.

The curves are an SVG that stretches with the page (strokes keep their width); all text is HTML placed by percentages,
so it keeps its size on a phone. `page.js` adds the hover; without it the chart is complete but still.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rl.report.text import compact, escape, score

MAX_POINTS = 600  # more than a screen has columns for; longer curves are drawn by the means of even buckets
SIZE = 1000  # the SVG's own coordinates, both ways


@dataclass(frozen=True, slots=True)
class Line:
    """One curve. `style` is a CSS class: `raw`, `smooth`, `s0` … `s7`, `rest`. NaN leaves a gap."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    style: str = "smooth"


@dataclass(frozen=True, slots=True)
class Marker:
    """A single measured value with its 95 % interval."""

    name: str
    step: float
    value: float
    low: float | None = None
    high: float | None = None
    style: str = "before"


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure. `zero`: the vertical axis begins at 0; `latest`: show where the main curve ended."""

    title: str
    unit: str
    lines: Sequence[Line]
    markers: Sequence[Marker] = ()
    zero: bool = False
    legend: bool = False
    latest: bool = False
    tall: bool = False
    x_label: str = "update"


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred running mean over at most `window` values (NaN left out), cut off at both ends."""
    half = window // 2
    result = []
    for i in range(len(values)):
        near = [value for value in values[max(0, i - half) : i + half + 1] if math.isfinite(value)]
        result.append(sum(near) / len(near) if near else math.nan)
    return result


def window_for(count: int) -> int:
    """An odd smoothing window of about an eighth of the run."""
    return max(1, count // 8) // 2 * 2 + 1


def thin(steps: Sequence[float], values: Sequence[float], most: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """At most `most` points; each stands for a bucket by its last step and its mean."""
    if len(steps) <= most:
        return list(steps), list(values)
    edges = [len(steps) * i // most for i in range(most + 1)]
    means = []
    for low, high in itertools.pairwise(edges):
        finite = [value for value in values[low:high] if math.isfinite(value)]
        means.append(sum(finite) / len(finite) if finite else math.nan)
    return [steps[high - 1] for high in edges[1:]], means


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) within [low, high], at most about `most`."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float, step: float) -> str:
    """A tick with as many decimals as its neighbours need."""
    if value == 0 or abs(value) < abs(step) * 1e-9:
        return "0"
    if abs(value) >= 1000 or abs(value) < 1e-3:
        return re.sub(r"\.0+(?=\D|$)|(\.\d*[1-9])0+(?=\D)", r"\1", compact(value)).replace("-", "−")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}".replace("-", "−")


@dataclass(frozen=True, slots=True)
class Axes:
    """The data range a chart shows, and where a value lies in it (as a fraction from the left and from the top)."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, step: float) -> float:
        return (step - self.x0) / (self.x1 - self.x0)

    def y(self, value: float) -> float:
        return (self.y1 - value) / (self.y1 - self.y0)


def axes(chart: Chart) -> Axes:
    """The range of everything in the chart with a little air, never below 0 if no value is."""
    steps = [step for line in chart.lines for step in line.steps] + [marker.step for marker in chart.markers]
    values = [value for line in chart.lines for value in line.values if math.isfinite(value)]
    for marker in chart.markers:
        bounds = (marker.value, marker.low, marker.high)
        values += [bound for bound in bounds if bound is not None and math.isfinite(bound)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    floor = 0.0 if low >= 0 else -math.inf
    if chart.zero:
        low, high = min(low, 0.0), max(high, 0.0)
    span = high - low if high - low > 1e-6 * max(abs(high), abs(low)) else 0.0  # less is rounding, not a change
    air = span * 0.06 or abs(high) * 0.1 or 0.5
    low, high = max(floor, low - air) if low != 0 else 0.0, high + air
    return Axes(0.0, max([1.0, *steps]), low, high)


def figure(chart: Chart, number: int) -> str:
    """The chart as an HTML figure; `number` is its index in the page's list of chart data."""
    area = axes(chart)
    y_ticks = ticks(area.y0, area.y1, 5)
    x_ticks = [tick for tick in ticks(area.x0, area.x1, 6 if chart.tall else 4) if tick == int(tick)]
    svg = [_grid(tick, area) for tick in y_ticks]
    svg += [_path(line, area) for line in chart.lines]
    svg += [_whisker(marker, area) for marker in chart.markers if marker.low is not None and marker.high is not None]
    svg += [_dot(marker, area) for marker in chart.markers]
    y_step = y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else abs(y_ticks[0]) if y_ticks else 1.0
    left = "".join(f'<i style="top:{area.y(tick):.2%}">{tick_label(tick, y_step or 1.0)}</i>' for tick in y_ticks)
    below = "".join(f'<i style="left:{area.x(tick):.2%}">{tick_label(tick, 1.0)}</i>' for tick in x_ticks)
    latest = _last(chart) if chart.latest else None
    value = f"<output>{compact(latest).replace('-', '−')}</output>" if latest is not None else ""
    return (
        f'<figure class="chart{" tall" if chart.tall else ""}">'
        f"<figcaption><span><b>{escape(chart.title)}</b> <small>{escape(chart.unit)}</small></span>{value}</figcaption>"
        f"{_legend(chart) if chart.legend else ''}"
        f'<div class="frame"><div class="ys">{left}</div>'
        f'<div class="plot" tabindex="0" data-chart="{number}" role="img" aria-label="{escape(_spoken(chart))}">'
        f'<svg viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none" aria-hidden="true">{"".join(svg)}</svg></div>'
        f'<div class="xs">{below}</div></div><div class="xlabel">{escape(chart.x_label)}</div></figure>'
    )


def chart_data(chart: Chart) -> dict[str, Any]:
    """What the hover needs, as JSON: the axes and every curve and marker."""
    area = axes(chart)
    series = [
        {
            "name": line.name,
            "style": line.style,
            "x": list(line.steps),
            "y": [float(f"{value:.5g}") if math.isfinite(value) else None for value in line.values],
        }
        for line in chart.lines
    ]
    marks = [
        {
            "name": m.name,
            "style": m.style,
            "x": m.step,
            "y": m.value,
            "text": score(m.value) + (f" ({score(m.low)} to {score(m.high)})" if m.low is not None else ""),
        }
        for m in chart.markers
    ]
    box = [area.x0, area.x1, area.y0, area.y1]
    return {"box": box, "label": chart.x_label, "series": series, "markers": marks}


def _grid(tick: float, area: Axes) -> str:
    return f'<path class="grid" d="M0 {area.y(tick) * SIZE:.1f}H{SIZE}"/>'


def _path(line: Line, area: Axes) -> str:
    points, pen = [], "M"
    finite = [math.isfinite(value) for value in line.values]
    for i, (step, value) in enumerate(zip(line.steps, line.values, strict=True)):
        if not finite[i]:
            pen = "M"
            continue
        points.append(f"{pen}{area.x(step) * SIZE:.1f} {area.y(value) * SIZE:.1f}")
        if pen == "M" and not (i + 1 < len(finite) and finite[i + 1]):
            points.append("h0")  # a point between two gaps: a line of no length draws as a dot
        pen = "L"
    return f'<path class="line {escape(line.style)}" d="{"".join(points)}"/>'


def _whisker(marker: Marker, area: Axes) -> str:
    assert marker.low is not None and marker.high is not None
    top, bottom = area.y(marker.high) * SIZE, area.y(marker.low) * SIZE
    return f'<path class="whisker {marker.style}" d="M{area.x(marker.step) * SIZE:.1f} {top:.1f}V{bottom:.1f}"/>'


def _dot(marker: Marker, area: Axes) -> str:
    x, y = area.x(marker.step) * SIZE, area.y(marker.value) * SIZE
    return f'<path class="dot halo" d="M{x:.1f} {y:.1f}h0"/><path class="dot {marker.style}" d="M{x:.1f} {y:.1f}h0"/>'


def _legend(chart: Chart) -> str:
    items = [f'<li><s class="key {escape(line.style)}"></s>{escape(line.name)}</li>' for line in chart.lines]
    items += [f'<li><s class="key mark {marker.style}"></s>{escape(marker.name)}</li>' for marker in chart.markers]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _last(chart: Chart) -> float | None:
    values = [value for value in chart.lines[-1].values if math.isfinite(value)] if chart.lines else []
    return values[-1] if values else None


def _spoken(chart: Chart) -> str:
    """The chart in a sentence, for readers who do not see it."""
    values = [value for value in chart.lines[-1].values if math.isfinite(value)] if chart.lines else []
    if not values:
        return f"{chart.title}: no values"
    return f"{chart.title}, from {compact(values[0])} to {compact(values[-1])} over {len(values)} points"
