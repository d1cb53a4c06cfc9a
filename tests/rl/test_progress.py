import io
import math
import re

import pytest
from rich.console import Console

from rl.progress import Progress, View, compact, duration, spark


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def plain(**options):
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=False, width=60)
    return Progress(console=console, clock=clock, **options), out, clock


def terminal(width=100, **options):
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=True, width=width)
    return Progress(console=console, clock=clock, **options), out, clock


class Utf8(io.StringIO):
    encoding = "utf-8"


def screen(progress):
    """What the panel shows right now, without colours."""
    console = Console(file=io.StringIO(), width=progress._console.width, color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.print(progress._panel())
    return capture.get()


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 8, "▁▂▃▄▅▆▇█"),
        ([8, 1], 8, "█▁"),
        ([0, 0, 10, 10], 2, "▁█"),
        ([0, 2, 4, 6, 8, 10], 3, "▁▅█"),
        ([5, 5, 5], 8, "▄▄▄"),
        ([0.1 + 0.2, 0.3], 8, "▄▄"),
        ([1, math.nan, 3], 8, "▁ █"),
        ([1, math.inf, 3, 3], 2, "▁█"),
        ([math.nan], 8, " "),
        ([], 8, ""),
        ([1, 2], 0, ""),
    ],
)
def test_spark_draws_the_means_of_even_buckets(values, width, expected):
    assert spark(values, width) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.6124, "0.612"),
        (12.34, "12.3"),
        (256, "256"),
        (999.7, "1.00k"),
        (12345.6, "12.3k"),
        (4.56e6, "4.56M"),
        (1.23e-6, "1.2e-6"),
        (0.0042, "0.0042"),
        (-0.5, "-0.500"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_compact_numbers(value, text):
    assert compact(value) == text


def test_durations():
    assert [duration(s) for s in (0, 59.6, 61, 3600, 7325, math.inf)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "2:02:05",
        "–",
    ]


def test_off_a_terminal_there_is_a_line_every_ten_seconds_and_one_per_finished_stage():
    progress, out, clock = plain(metric="exact_match")
    with progress:
        train = progress.stage("train", 20, "updates")
        for step in range(1, 21):
            clock.now += 4.0
            train.update(
                step,
                {
                    "reward": step / 20,
                    "metrics/other": 7.0,
                    "metrics/exact_match": 0.5,
                    "sampled_tokens_per_s": 12_345.6,
                    "trained_tokens_per_s": 8_100.0,
                    "staleness": 0.0,
                    "grad_norm": 3.0,
                },
            )
    lines = out.getvalue().splitlines()
    rest = "exact_match 0.500, sampled 12.3k tok/s, trained 8.10k tok/s, staleness 0"
    assert lines[0] == f"train 3/20 updates, reward 0.150, {rest}, 1:08 left"
    assert len(lines) == 7  # at 12, 24, 36, 48, 60, 72 and, finished, 80 seconds
    assert lines[-1] == f"train done: 20/20 updates in 1:20, reward 0.075 -> 0.975, {rest}"


def test_off_a_terminal_no_control_characters_whatever_the_names(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    progress, out, _ = plain(title="a\x1b[31mb")
    with progress:
        progress.note("run \x1b]0;title\x07 directory")
        progress.stage("evaluate before", 2, "tasks").update(2, {"bad\x1b[2J\r\nname": 0.5})
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out.getvalue()) is None
    assert "bad?[2J??name 0.500" in out.getvalue()


def test_standard_output_that_is_no_terminal_gets_plain_lines_even_if_colour_is_forced(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress() as progress:
        progress.stage("warm_start", 1, "steps").update(1, {"loss": 0.25})
    assert capsys.readouterr().out == "warm start done: 1/1 steps in 0:00, loss 0.250\n"


def test_ascii_terminals_get_what_they_can_show():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    with Progress(console=Console(file=out, force_terminal=True)) as progress:
        progress.stage("warm start", 1).update(1, {"loss": 0.25})
        progress.note("größer …")
    out.flush()
    assert raw.getvalue() == b"warm start done: 1/1 steps in 0:00, loss 0.250\ngr??er ?\n"


def test_quiet_says_nothing(capsys):
    with Progress(quiet=True) as progress:
        progress.note("hello")
        progress.stage("train", 1).update(1, {"reward": 1.0})
    assert capsys.readouterr().out == ""


def test_the_time_left_comes_from_recent_updates_and_not_from_the_first_that_compiles():
    progress, _, clock = plain()
    with progress:
        stage = progress.stage("train", 10, "updates")
        assert stage.seconds_left is None
        clock.now = 60.0
        stage.update(1)
        assert stage.seconds_left == 540.0
        clock.now = 62.0
        stage.update(2)
        assert stage.seconds_left == 16.0
        clock.now = 63.0
        assert stage.seconds_left == 15.0


def test_a_resumed_stage_counts_from_where_it_starts():
    progress, _, clock = plain()
    with progress:
        stage = progress.stage("train", 100, "updates", start=40)
        clock.now = 2.0
        stage.update(41)
        assert stage.seconds_left == 118.0


def test_the_next_stage_ends_the_one_before_it():
    progress, out, _ = plain()
    with progress:
        first = progress.stage("evaluate before", 256, "tasks")
        first.update(200, {"exact_match": 0.3})
        progress.stage("train", 5)
        first.update(201)
        assert (first.outcome, first.step) == ("done", 200)
    assert out.getvalue().splitlines()[0] == "evaluate before done: 200/256 tasks in 0:00, exact_match 0.300"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_passes_and_the_stage_is_marked_as_stopped(error):
    progress, out, _ = plain()
    with pytest.raises(error), progress:
        progress.stage("train", 10, "updates").update(4, {"reward": 0.5})
        raise error
    assert out.getvalue() == "train stopped: 4/10 updates in 0:00, reward 0.500\n"


def test_the_panel_has_a_line_per_finished_stage_and_a_bar_for_the_one_at_work():
    progress, _, clock = terminal(title="arithmetic · grpo", metric="exact_match")
    warm = progress.stage("warm_start", 4, "steps")
    for step in range(1, 5):
        clock.now += 1.0
        warm.update(step, {"loss": 3.0 - 0.5 * step, "trained_tokens_per_s": 900.0})
    train = progress.stage("train", 10, "updates")
    for step in (1, 2, 3):
        clock.now += 2.0
        train.update(step, {"reward": 0.1 * 2**step, "metrics/exact_match": 0.25, "staleness": 1.5})
    lines = screen(progress).splitlines()
    assert len(lines) == 5
    assert "arithmetic · grpo" in lines[0]
    assert re.search(r"✓ warm start  loss █▆▃▁ 2\.500 → 1 +4 steps +0:04 │", lines[1])
    assert re.search(r"● train +━+╸? +3/10 updates  0:14 left │", lines[2])
    assert "reward ▁▃█ 0.800   exact_match 0.250   staleness 1.500" in lines[3]


@pytest.mark.parametrize("width", [20, 40, 64, 100, 250])
def test_the_panel_fits_every_width_and_leaves_room_for_an_echoed_interrupt(width):
    progress, _, _ = terminal(width=width)
    progress.stage("evaluate before", 256, "tasks").update(256, {"exact_match": 0.5, "reward": 0.25})
    train = progress.stage("train", 1000, "updates")
    for step in range(1, 300):
        train.update(step, {"reward": step % 7, "metrics/a": 0.25, "sampled_tokens_per_s": 1e5, "staleness": math.nan})
    assert max(len(line) for line in screen(progress).splitlines()) <= min(110, width - 2)


def test_an_interrupt_leaves_the_terminal_with_its_cursor_and_the_last_panel():
    out = Utf8()
    console = Console(file=out, force_terminal=True, width=100, legacy_windows=False)
    with pytest.raises(KeyboardInterrupt), Progress(console=console) as progress:
        assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")  # kill -9 hides no cursor
        progress.stage("train", 10, "updates").update(4, {"reward": 0.5})
        raise KeyboardInterrupt
    text = out.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "✗ " in text and text.endswith("\n\x1b[?25h")


def test_metric_names_are_never_markup():
    progress, _, _ = terminal(title="[red]x[/red]")
    progress.stage("[bold]evaluate[/bold]", 2, "[b]tasks[/b]").update(1, {"[blink]m": 0.5})
    text = screen(progress)
    assert "[red]x[/red]" in text and "[bold]evaluate[/bold]" in text and "[blink]m 0.500" in text


def test_a_view_of_ones_own():
    progress, _, _ = terminal()
    stage = progress.stage("distil", 3, "steps", view=View("kl", ("loss",)))
    stage.update(1, {"kl": 2.0, "loss": 1.0, "other": 5.0})
    stage.update(2, {"kl": 1.0})
    assert "kl █▁ 1   loss 1 " in screen(progress)
