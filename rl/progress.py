"""What a person sees while a run works: one panel on a terminal, plain lines everywhere else.

    with Progress(title="arithmetic · grpo") as progress:
        train = progress.stage("train", total=100, unit="updates")
        for step in range(1, 101):
            train.update(step, metrics)

A stage ends when its last step is reported, when the next one begins, or with the `Progress` itself. An exception and
Ctrl-C pass through: the open stage is marked as stopped and the terminal is left as it was found.
"""

import itertools
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Literal, NamedTuple, Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇█"
RECENT = 200  # values the spark line of a stage at work looks back
SPARK_WIDTH = 24
MAX_WIDTH, NARROW = 110, 80  # columns of the panel: at most, and below which it leaves things out
RATE_WINDOW = 20  # updates the time left is estimated from; leaves out the first update, which compiles
NO_METRICS: Mapping[str, float] = MappingProxyType({})


def spark(values: Sequence[float], width: int) -> str:
    """A line chart in at most `width` characters: values fall into even buckets, each drawn by its mean.

    The lowest bucket is ▁ and the highest █; equal values are drawn in the middle. NaN and infinities are left out of
    the means; a bucket of nothing else is a space. Fewer values than `width` take one character each.
    """
    buckets = min(width, len(values))
    edges = [len(values) * i // buckets for i in range(buckets + 1)] if buckets > 0 else []
    means = [_mean(values[low:high]) for low, high in itertools.pairwise(edges)]
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return " " * len(means)
    low, span = min(finite), max(finite) - min(finite)
    if not span > 1e-12 * max(abs(low), 1e-300):
        return "".join("▄" if math.isfinite(mean) else " " for mean in means)
    return "".join(BLOCKS[round((mean - low) / span * 7)] if math.isfinite(mean) else " " for mean in means)


def duration(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    if not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def compact(value: float) -> str:
    """A number in few characters: `0.612`, `12.3`, `812`, `12.3k`, `4.56M`, `1.2e-6`."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    size = abs(value)
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= factor * 0.9995:
            scaled = value / factor
            return f"{scaled:.{2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0}f}{suffix}"
    if value == int(value):
        return str(int(value))
    if size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if size < 0.01:
        return f"{value:.4f}"
    return f"{value:.{3 if size < 9.9995 else 1 if size < 99.95 else 0}f}"


class View(NamedTuple):
    """Which metrics a stage shows.

    Attributes:
        spark: the metric whose history is drawn, if any.
        show: the others in order; `metrics/*` is the leading metric; None shows every metric that is reported.
    """

    spark: str | None = None
    show: tuple[str, ...] | None = None


VIEWS: Mapping[str, View] = {
    "warm start": View("loss", ("trained_tokens_per_s",)),
    "train": View("reward", ("metrics/*", "sampled_tokens_per_s", "trained_tokens_per_s", "staleness")),
}

Outcome = Literal["running", "done", "stopped"]


@dataclass(slots=True)
class Stage:
    """One stage of a run: tell it how far it is, its `Progress` draws it. Made by `Progress.stage`."""

    name: str
    total: int
    unit: str
    view: View
    start: int
    clock: Callable[[], float]
    changed: Callable[["Stage"], None]
    lead: str | None = None
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)
    times: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RATE_WINDOW))
    began: float = 0.0
    ended: float | None = None
    outcome: Outcome = "running"
    said: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.step = self.start
        self.began = self.said = self.clock()

    def update(self, step: int, metrics: Mapping[str, float] = NO_METRICS) -> None:
        """Report that `step` of `total` are done. Metrics that are not mentioned keep their last value."""
        if self.outcome != "running":
            return
        with self.lock:
            self.step = step
            self.metrics.update(metrics)
            self.times.append((self.clock(), step))
            if self.view.spark is not None and self.view.spark in metrics:
                self.history.append(float(metrics[self.view.spark]))
        if step >= self.total:
            self.finish()
        else:
            self.changed(self)

    def finish(self, outcome: Literal["done", "stopped"] = "done") -> None:
        """End the stage; does nothing if it has ended."""
        if self.outcome == "running":
            with self.lock:
                self.outcome, self.ended = outcome, self.clock()
            self.changed(self)

    @property
    def seconds(self) -> float:
        """Time since the stage began, or that it took."""
        return (self.clock() if self.ended is None else self.ended) - self.began

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the recent updates; None before the first."""
        now = self.clock()
        with self.lock:
            last = self.times[-1] if self.times else None
            first = self.times[0] if len(self.times) > 1 else (self.began, self.start)
        if last is None or last[1] <= first[1]:
            return None
        return max(0.0, (last[0] - first[0]) / (last[1] - first[1]) * (self.total - last[1]) - (now - last[0]))

    def shown(self) -> Iterator[tuple[str, float]]:
        """The metrics to show beside the spark line, in order, that have been reported."""
        with self.lock:
            metrics = dict(self.metrics)
        if self.view.show is None:
            yield from ((name, value) for name, value in metrics.items() if name != self.view.spark)
            return
        for name in self.view.show:
            for key in _leading(metrics, self.lead) if name == "metrics/*" else [name]:
                if key in metrics:
                    yield key, metrics[key]

    def drawn(self) -> list[float]:
        """The history of the metric that is drawn."""
        with self.lock:
            return list(self.history)


class Progress:
    """Live progress of a run, a context manager.

    On a terminal: one panel with a line per finished stage and a bar for the one at work. Elsewhere (a pipe, a file, a
    log): a plain line at most every `interval` seconds and one at the end of each stage, without control characters.

    Args:
        title: what runs, for the panel's frame.
        metric: the leading metric, without the `metrics/` or `rewards/` before it; None takes the first reported.
        quiet: show nothing at all.
        console: where to; standard output if None.
        interval: seconds between plain lines.
        clock: seconds from a monotonic clock.
    """

    def __init__(
        self,
        title: str = "",
        *,
        metric: str | None = None,
        quiet: bool = False,
        console: Console | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Rich takes FORCE_COLOR for a terminal; cursor movements in a log file help nobody.
        self._console = console or Console(force_terminal=sys.stdout.isatty())
        self._title, self._metric, self._quiet = _clean(title), metric, quiet
        self._interval, self._clock = interval, clock
        self._stages: list[Stage] = []
        self._live: Live | None = None

    def __enter__(self) -> Self:
        console = self._console
        if not self._quiet and console.is_terminal and not console.is_dumb_terminal and console.encoding == "utf-8":
            self._live = Live(console=console, get_renderable=self._panel, refresh_per_second=4)
            self._live.start()
            console.show_cursor(True)  # a hidden cursor would outlive a run that is killed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for stage in self._stages:
                stage.finish("done" if kind is None else "stopped")
        finally:
            if self._live is not None:
                self._live.stop()
                self._live = None

    def stage(self, name: str, total: int, unit: str = "steps", *, start: int = 0, view: View | None = None) -> Stage:
        """Begin a stage, and end the one before it.

        Args:
            name: for example "warm start", "evaluate before", "train", "evaluate after"; `VIEWS` knows some by name.
            total: the last step.
            unit: what a step is, in plural.
            start: steps done before (a resumed run).
            view: which metrics to show; by default the one of that name in `VIEWS`, else all.
        """
        for stage in self._stages:
            stage.finish()
        name = _clean(name.replace("_", " "))
        chosen = view or VIEWS.get(name, View())
        new = Stage(name, total, _clean(unit), chosen, start, self._clock, self._changed, self._metric)
        self._stages.append(new)
        return new

    def note(self, text: str) -> None:
        """Say something once, above the panel."""
        if self._live is not None:
            self._console.print(Text(_clean(text)))
        elif not self._quiet:
            self._say(text)

    def _changed(self, stage: Stage) -> None:
        if self._quiet or self._live is not None:
            return
        now = self._clock()
        if stage.outcome != "running" or now - stage.said >= self._interval:
            stage.said = now
            self._say(plain_line(stage))

    def _say(self, text: str) -> None:
        stream, encoding = self._console.file, self._console.encoding
        stream.write(_clean(text).encode(encoding, "replace").decode(encoding) + "\n")
        stream.flush()

    def _panel(self) -> RenderableType:
        # Two columns stay free: there the terminal echoes ^C without breaking the line, which would shift the panel.
        width = min(MAX_WIDTH, self._console.width - 2)
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, justify="right")
        grid.add_column(no_wrap=True, justify="right", min_width=9)
        parts: list[RenderableType] = [grid]
        for stage in self._stages:
            if stage.outcome == "running":
                grid.add_row(*_row_at_work(stage))
                parts.append(Padding(Flow(_details(stage)), (0, 0, 0, 2)))
            else:
                grid.add_row(*_row_finished(stage, narrow=width < NARROW))
        if not self._stages:
            grid.add_row(Text("starting …", style="dim"))
        title = Text(f" {self._title} ", style="bold") if self._title else None
        return Panel(Group(*parts), title=title, title_align="left", border_style="dim", padding=(0, 1), width=width)


def plain_line(stage: Stage) -> str:
    """A stage in one line of plain text, without its history."""
    history = stage.drawn()
    if stage.outcome == "running":
        head = f"{stage.name} {stage.step}/{stage.total} {stage.unit}"
        parts = [f"{_label(stage.view.spark)} {compact(history[-1])}"] if history and stage.view.spark else []
    else:
        done = stage.outcome == "done"
        head = f"{stage.name} {'done' if done else 'stopped'}: {stage.step}/{stage.total} {stage.unit}"
        head += f" in {duration(stage.seconds)}"
        parts = [f"{_label(stage.view.spark)} {_from_to(history, '->')}"] if history and stage.view.spark else []
    parts += [_item(name, value) for name, value in stage.shown()]
    left = stage.seconds_left
    if stage.outcome == "running" and left is not None:
        parts.append(f"{duration(left)} left")
    return ", ".join([head, *parts])


Row = tuple[RenderableType, RenderableType, RenderableType, RenderableType]  # name, doing or done, steps, time


def _row_at_work(stage: Stage) -> Row:
    name = Text.assemble(("● ", "cyan"), (stage.name, "bold"))
    bar = ProgressBar(total=max(1, stage.total), completed=stage.step, complete_style="cyan", finished_style="cyan")
    left = stage.seconds_left
    clock = f"{duration(left)} left" if left is not None else duration(stage.seconds)
    return name, bar, Text(f"{stage.step}/{stage.total} {stage.unit}"), Text(clock)


def _details(stage: Stage) -> list[Text]:
    """What stands under the bar of the stage at work: the spark line and the metrics."""
    history, items = stage.drawn(), [_rich_item(name, value) for name, value in stage.shown()]
    if history and stage.view.spark:
        line = spark(history[-RECENT:], SPARK_WIDTH)
        label, value = f"{_label(stage.view.spark)} ", f" {compact(history[-1])}"
        items.insert(0, Text.assemble((label, "dim"), (line, "cyan"), (value, "bold")))
    return items


def _row_finished(stage: Stage, narrow: bool) -> Row:
    """A finished stage in one line. The rates of its last update say little about it, so they are left out."""
    done, history = stage.outcome == "done", stage.drawn()
    items = [_rich_item(name, value) for name, value in stage.shown() if name not in MOMENTARY]
    if history and stage.view.spark:
        line = "" if narrow else f"{spark(history, SPARK_WIDTH // 3)} "
        label, value = f"{_label(stage.view.spark)} ", _from_to(history, "→")
        items.insert(0, Text.assemble((label, "dim"), (line, "cyan"), value))
    name = Text.assemble(("✓ ", "green") if done else ("✗ ", "red"), stage.name)
    steps = f"{stage.step}" if done else f"{stage.step}/{stage.total}"
    return (
        name,
        Flow(items, lines=1),
        Text(steps if narrow else f"{steps} {stage.unit}"),
        Text(duration(stage.seconds), "dim"),
    )


class Flow(NamedTuple):
    """Short texts laid out like words, broken only between them; what does not fit into `lines` is left out."""

    items: Sequence[Text]
    lines: int = 4

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines: list[Text] = []
        for item in self.items:
            if lines and lines[-1].cell_len + 3 + item.cell_len <= options.max_width:
                lines[-1].append("   ").append_text(item)
            else:
                lines.append(Text(no_wrap=True, overflow="ellipsis").append_text(item))
        yield from lines[: self.lines]


LABELS: Mapping[str, tuple[str, str]] = {
    "sampled_tokens_per_s": ("sampled", " tok/s"),
    "trained_tokens_per_s": ("trained", " tok/s"),
    "tokens_per_s": ("", " tok/s"),
}


MOMENTARY = {*LABELS, "staleness"}


def _label(name: str) -> str:
    return LABELS[name][0] if name in LABELS else _clean(name.removeprefix("metrics/").removeprefix("rewards/"))


def _clean(text: str) -> str:
    """Names are other people's: no control character of theirs reaches a terminal or a log."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _item(name: str, value: float) -> str:
    return f"{_label(name)} {compact(float(value))}{LABELS.get(name, ('', ''))[1]}".lstrip()


def _rich_item(name: str, value: float) -> Text:
    label = f"{_label(name)} ".lstrip()
    return Text.assemble((label, "dim"), f"{compact(float(value))}{LABELS.get(name, ('', ''))[1]}")


def _leading(metrics: Mapping[str, float], lead: str | None) -> list[str]:
    """The key of the leading metric, wherever the environment put it; the first metric if none is named."""
    if lead is None:
        return [name for name in metrics if name.startswith("metrics/")][:1]
    return [key for key in (f"metrics/{lead}", f"rewards/{lead}") if key in metrics][:1]


def _from_to(history: Sequence[float], arrow: str) -> str:
    """How a noisy history began and ended: the means of its first and last tenth."""
    tenth = max(1, len(history) // 10)
    if len(history) < 2:
        return compact(history[-1])
    return f"{compact(_mean(history[:tenth]))} {arrow} {compact(_mean(history[-tenth:]))}"


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
