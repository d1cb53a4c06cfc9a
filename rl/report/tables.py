"""Before and after as numbers: for the terminal, and the comparison of many runs that every view of a sweep shares."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from envs.errors import UpswingError
from rl.report.comparison import ABSENT, Choices, differences, no_choices, settings
from rl.report.run import Run, read_run, section
from rl.report.text import count, interval, printable, score, signed


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of a before/after table; bounds are 95 % intervals."""

    name: str
    before: float | None
    before_bounds: Sequence[float] | None
    after: float | None
    after_bounds: Sequence[float] | None
    gain: float | None
    gain_bounds: Sequence[float] | None


def measures(summary: Mapping[str, Any]) -> list[Measure]:
    """The leading metric and the reward, as far as the summary has them."""
    before, after, gain = (section(summary, key) for key in ("before", "after", "gain"))
    metric = str(summary.get("metric", "reward"))
    rows = [_measure(metric, "ci95", before, after, gain)]
    if metric != "reward" and ("reward" in before or "reward" in after):
        rows.append(_measure("reward", "reward_ci95", before, after, gain))
    return rows


def _measure(
    name: str, bounds: str, before: Mapping[str, Any], after: Mapping[str, Any], gain: Mapping[str, Any]
) -> Measure:
    start, end = _number(before.get(name)), _number(after.get(name))
    difference = None if start is None or end is None else end - start
    return Measure(
        name,
        start,
        before.get(bounds),
        end,
        after.get(bounds),
        _number(gain.get(name, difference)),
        gain.get(bounds),
    )


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The before/after table of one run, from its `summary.json`."""
    tasks = section(summary, "after").get("tasks", section(summary, "before").get("tasks"))
    caption = f"{count(tasks, 'held-out task')}, 95 % intervals" if tasks is not None else None
    table = Table(caption=caption, caption_style="dim", caption_justify="left", header_style="bold", border_style="dim")
    table.add_column("")
    for name in ("before", "after", "gain"):
        table.add_column(name, justify="right")
    for row in measures(summary):
        table.add_row(
            _text(row.name),
            _cell(score(row.before), interval(row.before_bounds)),
            _cell(score(row.after), interval(row.after_bounds)),
            _cell(signed(row.gain), interval(row.gain_bounds, sign=True), verdict_style(row)),
        )
    return table


def evaluation_table(summary: Mapping[str, Any], title: str) -> Table:
    """What `Evaluation.summary()` says, for the terminal."""
    failures = sum(section(summary, "failures").values())
    caption = f"{count(summary['tasks'], 'task')}, {count(summary['rollouts'], 'rollout')}, 95 % intervals"
    caption += f"; {count(failures, 'rollout')} failed and left out" if failures else ""
    table = Table(title=_text(title), caption=caption, header_style="bold", border_style="dim")
    table.add_column("")
    table.add_column("mean", justify="right")
    table.add_column("95 %", justify="right")
    rows = {"reward": summary["reward"], **section(summary, "rewards"), **section(summary, "metrics")}
    for name, value in rows.items():
        if value is not None:
            table.add_row(_text(name), _cell(score(value["mean"]), ""), _cell(interval(value["ci95"]), ""))
    for key, sign in (("pass_at", "@"), ("pass_all", "^")):
        for k, share in section(summary, key).items():
            if (key, k) != ("pass_all", "1"):  # the same as pass@1
                table.add_row(f"pass{sign}{k}", score(share["mean"]), interval(share["ci95"]))
    return table


def side_by_side(rows: Sequence[tuple[str, str, Mapping[str, Any] | str]]) -> Table:
    """Several evaluations: a row per environment, a column per model.

    Args:
        rows: environment, model, and what `Evaluation.summary()` said, or in words why there is none.
    """
    models = list(dict.fromkeys(model for _, model, _ in rows))
    table = Table(caption="mean reward, 95 % intervals", header_style="bold", border_style="dim")
    table.add_column("")
    for model in models:
        table.add_column(_text(model), justify="right", overflow="fold")
    for environment in dict.fromkeys(environment for environment, _, _ in rows):
        found = {model: summary for name, model, summary in rows if name == environment}
        best = max((_mean(found[m]) for m in models if m in found), default=-math.inf)
        cells = (_side(found.get(model, ABSENT), best, len(models) > 1) for model in models)
        table.add_row(_text(environment), *cells)
    return table


def _side(summary: Mapping[str, Any] | str, best: float, several: bool) -> Text:
    if isinstance(summary, str):
        return _text(summary, "" if summary == ABSENT else "red")
    reward = section(summary, "reward")
    if not reward:
        return _text("none scored", "red")
    style = "bold green" if several and reward["mean"] == best else ""
    cost = summary.get("cost")
    under = interval(reward["ci95"]) + ("" if cost is None else f"\n${cost:.4f}")
    return _cell(score(reward["mean"]), under, style)


def _mean(summary: Mapping[str, Any] | str) -> float:
    reward = {} if isinstance(summary, str) else section(summary, "reward")
    return float(reward.get("mean", -math.inf))


def tokens_line(summary: Mapping[str, Any]) -> str:
    """What an evaluation took, as far as the server told."""
    usage = section(summary, "usage")
    parts = [f"{value:,} {name.replace('_', ' ')}" for name, value in usage.items() if name != "total_tokens"]
    cost = summary.get("cost")
    parts += [f"${cost:.4f}"] if isinstance(cost, int | float) else []
    return ", ".join(parts) or "not told"


def verdict(row: Measure) -> str:
    """ "gain" or "loss" if the interval of the difference excludes 0, "unclear" if not, "" without a difference."""
    if row.gain is None:
        return ""
    low, high = row.gain_bounds if row.gain_bounds is not None and len(row.gain_bounds) == 2 else (math.nan, math.nan)
    return "gain" if low > 0 else "loss" if high < 0 else "unclear"


def verdict_style(row: Measure) -> str:
    return {"gain": "bold green", "loss": "bold red"}.get(verdict(row), "")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Many runs side by side, the best first.

    Attributes:
        keys: the settings in which they differ.
        metrics: the names of their leading metrics (usually one).
        rows: per run, the values of these keys and the measure of its leading metric.
    """

    keys: Sequence[str]
    metrics: Sequence[str]
    rows: Sequence[tuple[Run, Mapping[str, str], Measure]]


def compare(runs: Sequence[Run], choices: Choices = no_choices) -> Comparison:
    """Line runs up: best score after training first, unfinished ones last."""
    found = differences(runs, choices)
    rows = [(run, values, measures(run.summary)[0]) for run, values in zip(runs, found.rows, strict=True)]
    rows.sort(key=lambda row: (row[2].after is None, -(row[2].after or 0.0), row[0].name))
    return Comparison(found.keys, list({run.metric: None for run in runs}), rows)


def compare_table(run_dirs: Sequence[Path], choices: Choices = no_choices) -> Table:
    """A sweep on the terminal: one row per run with the settings in which they differ.

    Args:
        run_dirs: the runs.
        choices: what follows from a choice, and is not shown beside it.

    Raises:
        UpswingError: no runs are given, or one of the directories is no run.
    """
    if not run_dirs:
        raise UpswingError("no run directories to compare; name at least one")
    comparison = compare([read_run(Path(path), rollouts=False) for path in run_dirs], choices)
    title = f"{' / '.join(comparison.metrics)}, with 95 % intervals"
    table = Table(title=_text(title), title_justify="left", header_style="bold", border_style="dim", box=SIMPLE_HEAD)
    table.add_column("run", overflow="fold", min_width=3)
    # One line per setting, so that eighty columns hold any number of them beside the results.
    table.add_column("settings", overflow="fold", min_width=16)
    for name in ("before", "after", "gain"):
        table.add_column(name, justify="right", no_wrap=True)
    for run, values, row in comparison.rows:
        after = score(row.after) if row.after is not None else run.status
        table.add_row(
            _text(run.name),
            _text("\n".join(settings(values))),
            _cell(score(row.before), interval(row.before_bounds)),
            _cell(after, interval(row.after_bounds)),
            _cell(signed(row.gain), interval(row.gain_bounds, sign=True), verdict_style(row)),
        )
    return table


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _text(text: str, style: str = "") -> Text:
    """Foreign text for the terminal: no markup and no escape codes."""
    return Text(printable(text), style=style)


def _cell(value: str, bounds: str, style: str = "") -> Text:
    return Text.assemble((printable(value), style), (f"\n{bounds}", "dim")) if bounds else _text(value, style)
