"""The report of one run as a single HTML page that needs nothing but itself."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.report.chart import Chart, Line, Marker, chart_data, figure, smooth, thin, window_for
from rl.report.examples import examples_html
from rl.report.run import Run, section
from rl.report.tables import Measure, measures, verdict
from rl.report.text import compact, count, duration, escape, flatten, interval, score, signed

ASSETS = Path(__file__).parent


class Page:
    """Collects the parts of a page; charts are numbered so that the script finds their data."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = []
        self.charts: list[dict[str, Any]] = []

    def add(self, html: str) -> None:
        self.parts.append(html)

    def figure(self, chart: Chart) -> str:
        self.charts.append(chart_data(chart))
        return figure(chart, len(self.charts) - 1)

    def html(self) -> str:
        """The page. Its policy allows no request and no script but ours: a second lock behind the escaping."""
        style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
            + "\n".join(self.parts)
            + f'\n<script type="application/json" id="charts">{embedded(self.charts)}</script>\n'
            f"<script>{script}</script>\n</body>\n</html>\n"
        )


def embedded(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def run_page(run: Run) -> str:
    """The report of one run."""
    page = Page(f"{run.environment}, {run.algorithm}: {run.name}")
    page.add(f'<p class="crumb">{escape(run.name)}</p>')
    page.add(f"<h1>{headline(run)}</h1>")
    page.add(_facts(run))
    page.add(_banner(run))
    page.add(_before_after(run))
    page.add(_reward(run, page))
    page.add(_smalls(run, page))
    page.add(examples_html(run))
    page.add(_config(run.config))
    page.add(_machine(run))
    return page.html()


def headline(run: Run) -> str:
    """What happened, in one sentence: environment, algorithm, model, gain with its interval."""
    row = measures(run.summary)[0]
    model = (
        f"a model of {compact(float(run.info['parameters']))} parameters" if "parameters" in run.info else "the model"
    )
    how = f"{count(run.updates, 'update')} of {escape(run.algorithm)}"
    metric, where = escape(row.name), f"held-out {escape(run.environment)} tasks"
    if row.gain is None:
        total = run.config.get("steps")
        so_far = f"{run.updates:,}{f' of {total:,}' if isinstance(total, int) else ''} updates"
        start = f", which began at {score(row.before)} {metric}" if row.before is not None else ""
        verb = {"running": "in progress", "failed": "failed", "interrupted": "interrupted"}.get(run.status, run.status)
        return f"{escape(run.algorithm)} on {escape(run.environment)}, {escape(verb)}: {so_far} with {model}{start}."
    bounds = interval(row.gain_bounds, sign=True)
    certain = f" (95 % interval {bounds})" if bounds else ""
    moved = f"from {score(row.before)} to {score(row.after)} {metric} on {where}"
    words = {"gain": "a gain of", "loss": "a loss of", "unclear": "no clear change," if bounds else "a difference of"}
    style = verdict(row)
    return f'{how} took {model} {moved}: {words[style]} <span class="{style}">{signed(row.gain)}</span>{certain}.'


def _facts(run: Run) -> str:
    seconds = run.summary.get("train_seconds")
    facts = [f"seed {run.config['seed']}" if "seed" in run.config else ""]
    facts.append(f"trained in {duration(seconds)} min" if isinstance(seconds, int | float) and seconds < 3600 else "")
    facts.append(f"trained in {duration(seconds)} h" if isinstance(seconds, int | float) and seconds >= 3600 else "")
    facts.append(str(section(run.info, "machine").get("cpu", "")))
    facts.append(str(run.info.get("started", ""))[:16].replace("T", " "))
    return f'<p class="note">{escape(" · ".join(fact for fact in facts if fact))}</p>'


def _banner(run: Run) -> str:
    if run.status == "finished":
        return ""
    error = run.info.get("error")
    texts = {
        "running": "This run has not finished; the page shows what its directory held when the page was written.",
        "interrupted": "This run was interrupted; resuming it continues where it stopped.",
        "failed": "This run failed" + (f": {error}" if error else "."),
    }
    text = texts.get(run.status, f"This run's status is {run.status!r}.")
    return f'<div class="banner {"failed" if run.status == "failed" else ""}">{escape(text)}</div>'


def _before_after(run: Run) -> str:
    rows = [row for row in measures(run.summary) if row.before is not None or row.after is not None]
    if not rows:
        return '<p class="note">No evaluation on held-out tasks yet.</p>'
    ends = [section(run.summary, "after"), section(run.summary, "before")]
    tasks = next((end["tasks"] for end in ends if "tasks" in end), None)
    body = "".join(
        f"<tr><th>{escape(row.name)}</th>"
        f"{number_cell(score(row.before), interval(row.before_bounds))}"
        f"{number_cell(score(row.after), interval(row.after_bounds))}"
        f"{number_cell(signed(row.gain), interval(row.gain_bounds, sign=True), verdict(row))}"
        f'<td class="strip">{_strip(row)}</td></tr>'
        for row in rows
    )
    paired = "; that of the gain is paired by task" if section(run.summary, "gain").get("ci95") else ""
    return (
        '<div class="scroll"><table class="ends-table"><thead><tr><th></th><th>before</th><th>after</th><th>gain</th>'
        f'<th class="strip"></th></tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="note">{count(tasks, "held-out task")}, 95 % intervals{paired}.</p>'
    )


def number_cell(value: str, bounds: str, style: str = "") -> str:
    """A table cell with a large number and its interval below."""
    below = f'<span class="bounds">{bounds}</span>' if bounds else ""
    return f'<td class="{style}"><span class="big">{value}</span>{below}</td>'


def _strip(row: Measure) -> str:
    """Before and after as points with their intervals on one line, from 0 to 1 if they lie within."""
    ends = [(row.before, row.before_bounds, "before"), (row.after, row.after_bounds, "after")]
    values = [value for value, _, _ in ends if value is not None]
    if all(0 <= value <= 1 for value in values):
        low, high = 0.0, 1.0
    else:
        values += [bound for _, bounds, _ in ends for bound in bounds or ()]
        low, high = min(0.0, *values), max(0.0, *values)

    def x(value: float) -> str:
        return f"{min(1.0, max(0.0, (value - low) / (high - low))) * 1000:.1f}"

    marks = []
    for y, (value, bounds, style) in zip((250, 750), ends, strict=True):
        marks.append(f'<path class="base" d="M0 {y}H1000"/>')
        if value is not None and bounds:
            marks.append(f'<path class="bar {style}" d="M{x(bounds[0])} {y}H{x(bounds[1])}"/>')
        if value is not None:
            marks.append(f'<path class="point {style}" d="M{x(value)} {y}h0"/>')
    svg = f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">{"".join(marks)}</svg>'
    scale = f'<span class="ends"><i>{compact(low)}</i><i>{compact(high)}</i></span>'
    return f'<span class="track">{svg}</span>{scale}'


def curve(run: Run, key: str, name: str, stage: str = "train") -> tuple[list[Line], int]:
    """A metric as a light line of every update under a smoothed one, and the smoothing window."""
    steps, values = run.series(key, stage)
    window = window_for(len(values))
    if window == 1:
        return [Line(name, *thin(steps, values), "smooth")], 1
    smoothed = Line(f"mean of {window} updates", *thin(steps, smooth(values, window)), "smooth")
    return [Line("each update", *thin(steps, values), "raw"), smoothed], window


def eval_markers(run: Run, metric: str) -> list[Marker]:
    """The held-out evaluations of a metric: before at update 0, after at the last one."""
    row = next((row for row in measures(run.summary) if row.name == metric), None)
    if row is None:
        return []
    ends = [
        ("before", 0, row.before, row.before_bounds),
        ("after", run.updates, row.after, row.after_bounds),
    ]
    markers = []
    for name, step, value, bounds in ends:
        if value is not None:
            low, high = bounds if bounds is not None else (None, None)
            markers.append(Marker(f"held-out, {name}", step, value, low, high, name))
    return markers


def _reward(run: Run, page: Page) -> str:
    lines, _ = curve(run, "reward", "reward")
    markers = eval_markers(run, "reward")
    if not lines[0].steps:
        return '<h2>Reward</h2><p class="note">No training update has been logged yet.</p>'
    unit = "mean of each update's rollouts, training tasks"
    return page.figure(Chart("Reward", unit, lines, markers, legend=True, tall=True))


@dataclass(frozen=True, slots=True)
class Small:
    """A small chart of one metric, or of several that share a unit."""

    title: str
    unit: str
    keys: Sequence[str]
    names: Sequence[str] = ()
    zero: bool = False


PARTS = 8  # reward functions in one chart: as many as there are colours
SMALLS = (
    Small("entropy", "nats per token", ["entropy"], zero=True),
    Small("gradient norm", "global", ["grad_norm"], zero=True),
    Small("policy KL", "nats per token", ["kl"]),
    Small("clipped", "share of tokens", ["clip_fraction"], zero=True),
    Small("engine mismatch", "k3 of trainer and engine, nats per token", ["mismatch/k3"], zero=True),
    Small(
        "throughput", "tokens/s", ["sampled_tokens_per_s", "trained_tokens_per_s"], ["sampled", "trained"], zero=True
    ),
    Small("completion length", "tokens", ["completion_tokens"], zero=True),
)


def _smalls(run: Run, page: Page) -> str:
    """Small charts of what one looks at first, then every other metric in a closed drawer."""
    shown = ["reward", run.lead]
    charts = []
    if run.lead != "reward" and run.series(run.lead)[0]:
        lines, _ = curve(run, run.lead, run.metric)
        charts.append(
            page.figure(Chart(run.metric, "training tasks", lines, eval_markers(run, run.metric), latest=True))
        )
    for small in SMALLS:
        shown += small.keys
        charts += _small(run, small, page)
    if any(value > 0 for value in run.series("staleness")[1]):
        charts += _small(run, Small("staleness", "updates", ["staleness"], zero=True), page)
    parts = [key for key in run.logged() if key.startswith("rewards/") and key != run.lead][:PARTS]
    if len(parts) > 1:
        names = [key.removeprefix("rewards/") for key in parts]
        charts += _small(run, Small("reward functions", "before their weights", parts, names), page)
        shown += parts
    charts += _warm_start(run, page)
    others = [key for key in run.logged() if key not in (*shown, "staleness")]
    more = [chart for key in others for chart in _small(run, Small(key, "", [key]), page)]
    html = f'<section><h2>How it learned</h2><div class="smalls">{"".join(charts)}</div></section>' if charts else ""
    if more:
        html += (
            f"<details><summary>Everything else that was logged <small>{count(len(more), 'chart')}</small>"
            f'</summary><div class="smalls">{"".join(more)}</div></details>'
        )
    return html


def _small(run: Run, small: Small, page: Page) -> list[str]:
    names = small.names or [small.title] * len(small.keys)
    present = [
        (key, name)
        for key, name in zip(small.keys, names, strict=True)
        if any(math.isfinite(value) for value in run.series(key)[1])
    ]
    if len(present) < 2:
        lines = [line for key, name in present for line in curve(run, key, name)[0]]
        return [page.figure(Chart(small.title, small.unit, lines, zero=small.zero, latest=True))] if lines else []
    lines = []
    for i, (key, name) in enumerate(present):
        steps, values = run.series(key)
        lines.append(Line(name, *thin(steps, smooth(values, window_for(len(values)))), f"s{i}"))
    return [page.figure(Chart(small.title, small.unit, lines, zero=small.zero, legend=True))]


def _warm_start(run: Run, page: Page) -> list[str]:
    if not run.series("loss", "warm_start")[0]:
        return []
    lines, _ = curve(run, "loss", "loss", "warm_start")
    chart = Chart("warm start loss", "nats per token", lines, zero=True, latest=True, x_label="step of the warm start")
    return [page.figure(chart)]


def _config(config: Mapping[str, Any]) -> str:
    groups: dict[str, dict[str, Any]] = {"run": {}}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            groups[str(key)] = flatten(value)
        else:
            groups["run"][str(key)] = value
    cards = "".join(f"<div><h3>{escape(name)}</h3>{_list(values)}</div>" for name, values in groups.items() if values)
    total = sum(map(len, groups.values()))
    return (
        f"<h2>What was run</h2><details><summary>Configuration <small>{count(total, 'key')}</small></summary>"
        f'<div class="cards">{cards}</div></details>'
    )


def _machine(run: Run) -> str:
    facts: dict[str, Any] = {"status": run.status}
    facts |= {key: run.info[key] for key in ("started", "parameters") if key in run.info}
    if isinstance(run.info.get("seconds"), int | float):
        facts["duration"] = duration(run.info["seconds"])
    cards = {"run": facts} | {key: section(run.info, key) for key in ("environment", "machine", "versions")}
    body = "".join(f"<div><h3>{name}</h3>{_list(flatten(values))}</div>" for name, values in cards.items() if values)
    return f'<details><summary>Machine and versions</summary><div class="cards">{body}</div></details>'


def _list(values: Mapping[str, Any]) -> str:
    rows = [f"<dt>{escape(key)}</dt><dd>{escape(_plain(value))}</dd>" for key, value in values.items()]
    return f"<dl>{''.join(rows)}</dl>"


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 100_000 else str(value)
    return json.dumps(value, default=str, ensure_ascii=False)
