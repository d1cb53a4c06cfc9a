"""Look at runs: a page, a picture and a table from nothing but the run directory."""

from dataclasses import dataclass
from pathlib import Path

from envs.errors import UpswingError
from rl.report.comparison import Choices, no_choices
from rl.report.page import curve, eval_markers, run_page
from rl.report.picture import save_curves
from rl.report.run import Run, find_runs, read_run
from rl.report.sweep import summary_sentence, sweep_lines, sweep_page
from rl.report.tables import compare, compare_table, measures, summary_table
from rl.report.text import interval, score, signed

__all__ = [
    "ReportPaths",
    "Run",
    "compare_table",
    "find_runs",
    "read_run",
    "summary_table",
    "write_report",
    "write_sweep_report",
]


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """Where a report was written."""

    html: Path
    png: Path


def write_report(run_dir: Path) -> ReportPaths:
    """Write `report.html` and `reward.png` into a run directory, of a finished run or of one at work.

    Raises:
        UpswingError: it is no run directory, or a file in it is damaged.
    """
    run = read_run(Path(run_dir))
    paths = ReportPaths(run.path / "report.html", run.path / "reward.png")
    lines = [line for line in curve(run, "reward", "reward")[0] if line.steps]
    title = f"{run.environment}, {run.algorithm}"
    save_curves(paths.png, title, _outcome(run), "reward", lines, eval_markers(run, "reward"))
    _write(paths.html, run_page(run))
    return paths


def write_sweep_report(directory: Path, choices: Choices = no_choices) -> ReportPaths:
    """Write `report.html` and `reward.png` that compare every run below a directory.

    Args:
        directory: the sweep's.
        choices: what follows from a choice, and is not shown beside it.

    Raises:
        UpswingError: there is no run below it, or a file of one is damaged.
    """
    directory = Path(directory)
    runs = [read_run(path, rollouts=False) for path in find_runs(directory)] if directory.is_dir() else []
    if not runs:
        what = "contains no run directory" if directory.is_dir() else "is not a directory"
        raise UpswingError(
            f"{directory} {what}; expected folders with config.yaml and run.json in it. Name the directory of a sweep"
        )
    paths = ReportPaths(directory / "report.html", directory / "reward.png")
    comparison = compare(runs, choices)
    lines = sweep_lines(comparison)
    save_curves(paths.png, f"{directory.resolve().name}", summary_sentence(comparison), "reward", lines)
    _write(paths.html, sweep_page(comparison, directory))
    return paths


def _outcome(run: Run) -> str:
    row = measures(run.summary)[0]
    if row.gain is None:
        return f"{run.status} after {run.updates} updates"
    bounds = interval(row.gain_bounds, sign=True)
    certain = f" (95 % interval {bounds})" if bounds else ""
    return f"held-out {row.name} from {score(row.before)} to {score(row.after)}: {signed(row.gain)}{certain}"


def _write(path: Path, html: str) -> None:
    path.write_text(html, encoding="utf-8", errors="replace")
