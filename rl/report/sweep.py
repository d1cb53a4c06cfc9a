"""The report of a sweep: every run in one table, their curves over each other."""

from pathlib import Path

from rl.report.chart import Chart, Line, smooth, thin, window_for
from rl.report.comparison import label
from rl.report.page import Page, number_cell
from rl.report.run import Run
from rl.report.tables import Comparison, Measure, verdict
from rl.report.text import count, escape, interval, score, signed

COLOURED = 8  # curves with a colour of their own; the others are grey


def sweep_page(comparison: Comparison, directory: Path) -> str:
    """The comparison of all runs below `directory`."""
    page = Page(f"{directory.resolve().name}: {count(len(comparison.rows), 'run')}")
    page.add(f'<p class="crumb">{escape(directory.resolve().name)}</p>')
    page.add(f"<h1>{_headline(comparison)}</h1>")
    page.add(_table(comparison, directory))
    lines = sweep_lines(comparison)
    if lines:
        unit = "smoothed, training tasks; colours as in the table"
        page.add(page.figure(Chart("Reward", unit, lines, tall=True)))
    else:
        page.add('<h2>Reward</h2><p class="note">No training update has been logged yet.</p>')
    return page.html()


def sweep_lines(comparison: Comparison) -> list[Line]:
    """The smoothed reward of every run, the best on top."""
    lines = []
    for i, (run, values, _) in enumerate(comparison.rows):
        steps, rewards = run.series("reward")
        name = label(run, values)
        if steps:
            lines.append(Line(name, *thin(steps, smooth(rewards, window_for(len(rewards)))), _style(i)))
    return lines[::-1]


def summary_sentence(comparison: Comparison) -> str:
    """The best run of a sweep in plain text."""
    run, values, best = comparison.rows[0]
    total = count(len(comparison.rows), "run")
    if best.after is None:
        return f"{total} of {run.environment}; none has been evaluated after training yet."
    bounds = interval(best.after_bounds)
    certain = f" (95 % interval {bounds})" if bounds else ""
    reached = f"the best reached {score(best.after)} {best.name}{certain}"
    return f"{total} of {run.environment}; {reached}: {label(run, values)}."


def _headline(comparison: Comparison) -> str:
    return escape(summary_sentence(comparison))


def _style(index: int) -> str:
    return f"s{index}" if index < COLOURED else "rest"


def _table(comparison: Comparison, directory: Path) -> str:
    head = "".join(f'<th class="wrap">{escape(key)}</th>' for key in comparison.keys)
    body = "".join(
        f'<tr><td class="wrap"><s class="key {_style(i)}"></s>{_link(run, directory)}</td>'
        + "".join(f'<td class="wrap">{escape(values[key])}</td>' for key in comparison.keys)
        + _numbers(run, row)
        + "</tr>"
        for i, (run, values, row) in enumerate(comparison.rows)
    )
    metrics = escape(" / ".join(comparison.metrics))
    return (
        f'<div class="scroll"><table class="sweep"><thead><tr><th>run</th>{head}<th class="early">before</th>'
        f"<th>after</th><th>gain</th></tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="note">{metrics} on held-out tasks, 95 % intervals. '
        "The best of many runs looks better than it is: its interval does not account for the choice.</p>"
    )


def _numbers(run: Run, row: Measure) -> str:
    after = score(row.after) if row.after is not None else escape(run.status)
    return (
        number_cell(score(row.before), interval(row.before_bounds), "early")
        + number_cell(after, interval(row.after_bounds))
        + number_cell(signed(row.gain), interval(row.gain_bounds, sign=True), verdict(row))
    )


def _link(run: Run, directory: Path) -> str:
    """The run's name, linked to its own report if that has been written."""
    try:
        target = (run.path / "report.html").relative_to(directory)
    except ValueError:
        return escape(run.name)
    name = escape(run.name)
    return f'<a href="{escape(target.as_posix())}">{name}</a>' if (run.path / "report.html").is_file() else name
