"""The reward curve as a PNG, for a README or a chat. Matplotlib is loaded on first use, without its global state."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl.report.chart import Line, Marker
from rl.report.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, RULE, ACCENT, BEFORE, GREY = "#1b1d21", "#63676f", "#e4e4e0", "#1d5fc4", "#85898f", "#9a9ea6"
COLOURS = ("#1d5fc4", "#d06a1d", "#1b7a45", "#8e44a0", "#b3362a", "#0f8390", "#97690c", "#c0508a")


def save_curves(
    path: Path,
    title: str,
    subtitle: str,
    unit: str,
    lines: Sequence[Line],
    markers: Sequence[Marker] = (),
    x_label: str = "update",
) -> None:
    """Draw curves over updates with the markers of the evaluations.

    Args:
        path: the PNG to write.
        title: what was run.
        subtitle: what came out.
        unit: the label of the vertical axis.
        lines: styles as in `rl.report.chart.Line`.
        markers: held-out evaluations.
        x_label: the label of the horizontal axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    many = len(lines) > 3
    axis = figure.add_axes((0.075, 0.125, 0.665 if many else 0.895, 0.665))
    for line in lines:
        axis.plot(
            line.steps, line.values, **_stroke(line), label=printable(line.name), gid=line.style, solid_capstyle="round"
        )
    for marker in markers:
        _draw_marker(axis, marker)
    if not lines:
        axis.text(0.5, 0.5, "no training update yet", transform=axis.transAxes, ha="center", color=SOFT)
    _dress(figure, axis, title, subtitle, unit, x_label)
    _legend(axis, many)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a script that the font lacks is drawn as boxes
        figure.savefig(path)


def _stroke(line: Line) -> dict[str, Any]:
    if line.style == "raw":
        return {"color": ACCENT, "alpha": 0.3, "linewidth": 0.9}
    if line.style == "rest":
        return {"color": GREY, "alpha": 0.6, "linewidth": 0.9}
    colour = COLOURS[int(line.style[1:])] if line.style[1:].isdigit() else ACCENT
    return {"color": colour, "linewidth": 2.0}


def _draw_marker(axis: "Axes", marker: Marker) -> None:
    colour = BEFORE if marker.style == "before" else INK
    if marker.low is not None and marker.high is not None:
        axis.plot([marker.step] * 2, [marker.low, marker.high], color=colour, linewidth=1.6, clip_on=False, zorder=3)
    axis.plot(
        [marker.step],
        [marker.value],
        "o",
        color=colour,
        markersize=7,
        markeredgecolor="white",
        markeredgewidth=1.4,
        label=printable(marker.name),
        clip_on=False,
        zorder=4,
    )


def _dress(figure: "Figure", axis: "Axes", title: str, subtitle: str, unit: str, x_label: str) -> None:
    """Titles, labels, grid and legend. Foreign text is never read as a formula."""
    figure.text(
        0.021, 0.945, _short(title, 90), fontsize=13, fontweight="bold", color=INK, va="center", parse_math=False
    )
    figure.text(0.021, 0.885, _short(subtitle, 125), fontsize=9.5, color=SOFT, va="center", parse_math=False)
    axis.set_xlabel(x_label, color=SOFT, fontsize=9, loc="right")
    axis.set_ylabel(printable(unit), color=SOFT, fontsize=9, loc="top", parse_math=False)
    axis.grid(axis="y", color=RULE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.margins(x=0.015)
    if max(map(abs, axis.get_ylim())) < 1e-3:  # a power of ten above the axis would lie over the legend
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if value else "0")
    axis.tick_params(colors=SOFT, labelsize=9, length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(GREY)


def _legend(axis: "Axes", many: bool) -> None:
    """Above the curves; of many, at their side with the last drawn (the best) first and without the grey ones."""
    entries = list(zip(*axis.get_legend_handles_labels(), strict=True))
    if many:
        grey = [entry for entry in entries if entry[0].get_gid() == "rest"]
        entries = [entry for entry in reversed(entries) if entry not in grey]
        entries += [(grey[0][0], f"{len(grey)} more")] if grey else []
    if not entries:
        return
    legend = axis.legend(
        [handle for handle, _ in entries],
        [_short(label, 28 if many else 60) for _, label in entries],
        frameon=False,
        fontsize=8.5,
        ncols=1 if many else len(entries),
        loc="upper left" if many else "lower left",
        bbox_to_anchor=(1.015, 1.0) if many else (-0.005, 1.0),
        borderaxespad=0.2,
        handlelength=1.6,
        labelcolor=SOFT,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _short(text: str, longest: int) -> str:
    line = " ".join(printable(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
