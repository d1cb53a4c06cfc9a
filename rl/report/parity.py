"""What `rl parity` found, as a table and as a page with a plot."""

from pathlib import Path

from rich.table import Table

from rl.inference.parity import Parity
from rl.report.chart import Chart, Line
from rl.report.page import Page
from rl.report.picture import save_curves
from rl.report.text import compact, count, escape

MEANINGS = {
    "mean_abs": "mean |difference| of log-probabilities, nats",
    "max_abs": "largest |difference|, nats",
    "k1": "KL(engine || trainer), k1: mean difference",
    "k3": "KL(engine || trainer), k3: never negative",
    "top1": "greedy tokens that are the trainer's likeliest",
}


def parity_table(parity: Parity, title: str, rows: int = 8) -> Table:
    """The numbers over all tokens, and by place: powers of two, `rows` at most."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column(f"{parity.tokens:,} tokens", justify="right")
    for name, meaning in MEANINGS.items():
        value = getattr(parity, name)
        table.add_row(meaning, f"{value:.2%}" if name == "top1" else f"{value:.2e}")
    table.add_section()
    places = [n for n in (0, *(2**power for power in range(rows))) if n < len(parity.positions)]
    for place in places[:rows]:
        found = parity.positions[place]
        table.add_row(f"token {place + 1}: mean, largest |difference|", f"{found.mean_abs:.1e}  {found.max_abs:.1e}")
    return table


def write_page(folder: Path, parity: Parity, title: str, note: str) -> tuple[Path, Path]:
    """Writes `parity.html` and `parity.png`; returns their paths.

    Args:
        folder: exists.
        parity: what was found.
        title: which model and engine.
        note: how it was measured.
    """
    steps = [float(position.position + 1) for position in parity.positions]
    lines = [
        Line("largest", steps, [position.max_abs for position in parity.positions], "raw"),
        Line("mean", steps, [position.mean_abs for position in parity.positions], "smooth"),
    ]
    unit = "|trainer − engine|, nats"
    page = Page(title)
    page.add(f"<h1>{escape(title)}</h1>")
    page.add(f'<p class="note">{escape(note)}</p>')
    body = "".join(
        f"<tr><th>{escape(meaning)}</th><td>{escape(_shown(name, getattr(parity, name)))}</td></tr>"
        for name, meaning in MEANINGS.items()
    )
    page.add(f'<div class="scroll"><table><tbody>{body}</tbody></table></div>')
    chart = Chart(
        "By place in the completion", unit, lines, zero=True, legend=True, tall=True, x_label="token of the completion"
    )
    page.add(page.figure(chart))
    html, png = folder / "parity.html", folder / "parity.png"
    html.write_text(page.html(), "utf-8")
    said = f"mean {parity.mean_abs:.1e}, largest {parity.max_abs:.1e} nats over {count(parity.tokens, 'token')}"
    save_curves(png, title, said, unit, lines, x_label="token of the completion")
    return html, png


def _shown(name: str, value: float) -> str:
    return f"{value:.2%}" if name == "top1" else compact(value)
