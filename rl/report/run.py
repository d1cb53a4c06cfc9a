"""Read a run directory. Nothing else is needed for a report, and nothing is written here."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from envs import record
from envs.errors import UpswingError
from envs.statistics import estimate
from envs.types import Trajectory

CONFIG, INFO, METRICS, SUMMARY = "config.yaml", "run.json", "metrics.jsonl", "summary.json"


@dataclass(frozen=True, slots=True)
class Run:
    """What a run directory holds so far.

    Attributes:
        path: the directory.
        config: the composed configuration.
        info: `run.json`: status, machine, versions, environment, parameters.
        metrics: one row per update, in order.
        summary: the evaluations before and after; of a run without `summary.json`, what its files say so far.
        before: the held-out rollouts before training.
        after: and after it.
    """

    path: Path
    config: Mapping[str, Any]
    info: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    before: Sequence[Trajectory]
    after: Sequence[Trajectory]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def status(self) -> str:
        return str(self.info.get("status", "unknown"))

    @property
    def environment(self) -> str:
        return str(section(self.info, "environment").get("name") or section(self.config, "env").get("name") or "?")

    @property
    def algorithm(self) -> str:
        return str(section(self.config, "algorithm").get("name", "?"))

    @property
    def metric(self) -> str:
        """The name of the leading metric."""
        return str(self.summary.get("metric") or section(self.config, "eval").get("metric") or "reward")

    @property
    def lead(self) -> str:
        """The key of the leading metric in the rows of `metrics`."""
        keys = [f"metrics/{self.metric}", f"rewards/{self.metric}", self.metric]
        return next((key for key in keys if any(key in row for row in self.metrics)), keys[0])

    @property
    def updates(self) -> int:
        """The last update so far."""
        return max((row["step"] for row in self.metrics if row["stage"] == "train"), default=0)

    def series(self, key: str, stage: str = "train") -> tuple[list[int], list[float]]:
        """The steps at which a metric was logged, and its values (NaN where it is no finite number)."""
        rows = [row for row in self.metrics if row["stage"] == stage and key in row]
        return [row["step"] for row in rows], [_finite(row[key]) for row in rows]

    def logged(self, stage: str = "train") -> list[str]:
        """Every metric logged in a stage, in the order of first appearance."""
        seen = {key: None for row in self.metrics if row["stage"] == stage for key in row}
        return [key for key in seen if key not in ("stage", "step", "time")]


def section(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A nested dictionary, empty if it is missing or something else."""
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}


def is_run(path: Path) -> bool:
    """Whether a directory looks like one that `rl train` wrote."""
    return (path / CONFIG).is_file() and (path / INFO).is_file()


def find_runs(directory: Path) -> list[Path]:
    """Every run directory below `directory`, sorted by path."""
    return sorted(found.parent for found in directory.rglob(INFO) if is_run(found.parent))


def read_run(path: Path, *, rollouts: bool = True) -> Run:
    """Read a run directory, of a finished run or of one at work.

    Args:
        path: the directory.
        rollouts: read the held-out rollouts too; they are the bulk of it. Without `summary.json` they are always read.

    Raises:
        UpswingError: it is no run directory, or a file in it is damaged. A torn last line of a file that grows is what
            a killed run leaves behind, and is skipped.
    """
    _require_run(path)
    config = _mapping(path / CONFIG, yaml.safe_load, yaml.YAMLError)
    info = _mapping(path / INFO, json.loads, ValueError)
    metrics = [_metric_row(path / METRICS, number, row) for number, row in _lines(path / METRICS)]
    has_summary = (path / SUMMARY).is_file()
    needed = rollouts or not has_summary
    before, after = (_trajectories(path / "evals" / f"{when}.jsonl", needed) for when in ("before", "after"))
    if has_summary:
        summary = _mapping(path / SUMMARY, json.loads, ValueError)
    else:
        summary = _summary_so_far(config, before, after)
    return Run(path, config, info, metrics, summary, before, after)


def value_of(trajectory: Trajectory, metric: str) -> float | None:
    """A trajectory's value of a metric, a reward function or "reward"; None if it failed or has none."""
    if trajectory.failure is not None:
        return None
    if metric in trajectory.metrics:
        return trajectory.metrics[metric]
    return trajectory.rewards.get(metric, trajectory.reward if metric == "reward" else None)


def _require_run(path: Path) -> None:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UpswingError(f"{path} {what}; expected the directory of a run. `rl train` prints it, by default runs/…")
    missing = [name for name in (CONFIG, INFO) if not (path / name).is_file()]
    if not missing:
        return
    found = ", ".join(sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())[:8]) or "nothing"
    message = f"{path} is not a run directory: found {found}; expected {CONFIG} and {INFO} ({' and '.join(missing)} "
    message += f"{'is' if len(missing) == 1 else 'are'} missing)"
    runs = find_runs(path)
    if runs:
        raise UpswingError(f"{message}. It contains {len(runs)} of them, for example {runs[-1]}: name one of these")
    raise UpswingError(f"{message}. Name a directory that `rl train` wrote, by default below runs/")


def _mapping(path: Path, parse: Any, error_type: type[Exception]) -> dict[str, Any]:
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except (error_type, UnicodeDecodeError) as error:
        first = " ".join(str(error).split())
        raise UpswingError(f"{path} is damaged: {first}. Restore it, or resume the run to write it again") from error
    if not isinstance(data, dict):
        raise UpswingError(f"{path} is damaged: found {type(data).__name__}, expected a dictionary. Restore it")
    return data


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The JSON values of a file of lines with their line numbers. The last line may be torn."""
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline after it: its writer was killed
                return
            raise UpswingError(
                f"{path}, line {number}, is damaged: {error}; expected one JSON object per line. Delete that line"
            ) from error


def _metric_row(path: Path, number: int, row: Any) -> dict[str, Any]:
    if isinstance(row, dict) and isinstance(row.get("stage"), str) and isinstance(row.get("step"), int):
        return row
    raise UpswingError(
        f'{path}, line {number}: found {json.dumps(row)[:80]}; expected an object with "stage" (text) and "step" '
        "(whole number). Delete that line"
    )


def _trajectories(path: Path, read: bool) -> list[Trajectory]:
    return [trajectory for _, trajectory in record.read(path)] if read and path.is_file() else []


def _finite(value: Any) -> float:
    """A logged value as a number; NaN for what cannot be drawn."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _summary_so_far(
    config: Mapping[str, Any], before: Sequence[Trajectory], after: Sequence[Trajectory]
) -> dict[str, Any]:
    """The part of `summary.json` that the rollouts on disk tell already."""
    metric = str(section(config, "eval").get("metric", "reward"))
    summary: dict[str, Any] = {"metric": metric, "steps": config.get("steps"), "seed": config.get("seed")}
    for when, trajectories in (("before", before), ("after", after)):
        if trajectories:
            reward, reward_bounds = mean_interval(trajectories, "reward")
            value, bounds = mean_interval(trajectories, metric)
            tasks = len({trajectory.task.id for trajectory in trajectories})
            summary[when] = {"reward": reward, "reward_ci95": reward_bounds, "tasks": tasks}
            summary[when] |= {metric: value, "ci95": bounds}
    return summary


def mean_interval(trajectories: Sequence[Trajectory], metric: str) -> tuple[float, list[float | None] | None]:
    """Mean over tasks with its 95 % interval; None where a single task says nothing, NaN without any value."""
    by_task: dict[str, list[float]] = {}
    for trajectory in trajectories:
        value = value_of(trajectory, metric)
        if value is not None:
            by_task.setdefault(trajectory.task.id, []).append(value)
    if not by_task:
        return math.nan, None
    found = estimate(list(by_task.values()))
    return found.mean, None if found.low is None else [found.low, found.high]
