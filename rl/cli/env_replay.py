"""`rl env replay RUN`: a run's saved rollouts, scored with today's rubric."""

import asyncio
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from envs.environment import Environment
from envs.errors import ConfigError, UpswingError
from envs.evaluation import Evaluation
from envs.record import Journal
from envs.rescoring import rescore
from envs.resolve import find_environment, load_environment
from envs.types import Trajectory
from rl.cli.envs import values
from rl.cli.launch import Parser
from rl.cli.report import directory
from rl.report.text import score, signed
from rl.rollout.saved import saved_rollouts

HELP = """\
Score a run's saved rollouts with today's rubric, and compare. No model is asked.

usage: rl env replay RUN [KEY=VALUE …] [--env NAME] [--watch]

  RUN         a run's directory, its name below runs/, or a journal of rollouts
  KEY=VALUE   arguments of the environment, instead of the run's: rubric.weights.brief=0.1
  --env NAME  another environment than the run's
  --watch     score again whenever a file of the environment changes, until Ctrl-C

The new scores are written to RUN/replay/, in the form of the old ones (rl view RUN/replay/…).

examples:
  rl env replay runs/NAME
  rl env replay runs/NAME --watch
  rl env replay runs/NAME rubric.weights.exact_match=1 rubric.metrics=[turns]
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command with what follows it on the command line; returns the exit code."""
    parser = Parser(prog="rl env replay", add_help=False, allow_abbrev=False)
    parser.add_argument("run", nargs="?")
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--env")
    parser.add_argument("--watch", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    given = parser.parse_intermixed_args(arguments)
    if given.help:
        print(HELP, end="")
        return 0
    if given.run is None:
        raise ConfigError("no run named; expected rl env replay RUN, for example the directory that `rl eval` printed")
    path = directory(given.run)
    name, settings = _environment_of(path, given.env)
    settings = _merged(settings, values(given.arguments))
    saved: dict[str, list[Trajectory]] = {}
    for where, trajectory in saved_rollouts(path):
        saved.setdefault(where, []).append(trajectory)
    console = Console()
    if given.watch:
        watch(name, settings, saved, path, console)
    else:
        find_environment(name).forget()
        replay(load_environment(name, **settings), saved, path, console)
    return 0


def replay(environment: Environment, saved: Mapping[str, Sequence[Trajectory]], path: Path, console: Console) -> None:
    """Score, write and print.

    Raises:
        UpswingError: when nothing could be scored.
    """
    started = time.perf_counter()
    failed: list[Trajectory] = []
    compared = {}
    for where, before in saved.items():
        after = asyncio.run(rescore(environment, before))
        failed += [t for t, b in zip(after, before, strict=True) if t.failure is not None and b.failure != t.failure]
        if path.is_dir():
            file = path / "replay" / f"{where.replace('/', '-')}.jsonl"
            file.unlink(missing_ok=True)
            with Journal(file) as journal:
                for trajectory in after:
                    journal.append(trajectory)
        compared[where] = (before, after)
    console.print(_table(compared))
    count = sum(map(len, saved.values()))
    console.print(f"{count:,} rollouts scored in {time.perf_counter() - started:.2f} s", style="dim")
    if failed:
        failure = failed[0].failure
        assert failure is not None
        raise UpswingError(
            f"{len(failed)} of {count} rollouts could not be scored; the first: {failure.where} raised {failure.error} "
            f"on task '{failed[0].task.id}': {failure.message}\n{failure.traceback}".rstrip()
        )


def watch(
    name: str, settings: Mapping[str, Any], saved: Mapping[str, Sequence[Trajectory]], path: Path, console: Console
) -> None:
    """Score whenever a file of the environment changes. A mistake in it is shown, and the next change awaited."""
    sys.dont_write_bytecode = True  # compiled files are told apart by the second, and edits come faster
    info = find_environment(name)
    seen: dict[Path, tuple[int, int]] = {}
    while True:
        # Times are as coarse as the system's clock ticks: a file that is just being written has another size, too.
        now = {file: (at.st_mtime_ns, at.st_size) for file in info.files() for at in [file.stat()]}
        if now != seen:
            seen = now
            info.forget()
            try:
                replay(load_environment(name, **settings), saved, path, console)
            except UpswingError as error:
                console.print(Text(f"error: {error}", style="red"))
            except Exception:  # noqa: BLE001 - code that is being written
                console.print(Text(traceback.format_exc(), style="red"))
            console.print(f"watching {info.path} (Ctrl-C ends)", style="dim", soft_wrap=True)
        time.sleep(0.3)


def _environment_of(path: Path, other: str | None) -> tuple[str, dict[str, Any]]:
    """The environment of a run: its name, and the arguments it was made with."""
    if other is not None:
        return other, {}
    config = path / "config.yaml" if path.is_dir() else path.parent.parent / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{config} does not exist, so that the environment is not known; name it: --env NAME")
    settings = dict(yaml.safe_load(config.read_text("utf-8"))["env"])
    return settings.pop("name"), settings


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both, the second's values where they have the same key, at any depth."""
    merged = dict(first)
    for key, value in second.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _table(compared: Mapping[str, tuple[Sequence[Trajectory], Sequence[Trajectory]]]) -> Table:
    table = Table(header_style="bold", border_style="dim")
    table.add_column("")
    table.add_column("rollouts", justify="right")
    for name in ("then", "now", "change"):
        table.add_column(name, justify="right")
    for where, (before, after) in compared.items():
        old, new = Evaluation(before), Evaluation(after)
        names = dict.fromkeys([*new.names, *old.names])
        table.add_row(Text(where, style="bold"), str(len(before)), "", "", "")
        for name in names:
            then, now = (_mean(side, name) for side in (old, new))
            change = None if then is None or now is None else now - then
            table.add_row(Text(f"  {name}"), "", score(then), score(now), signed(change))
    return table


def _mean(side: Evaluation, name: str) -> float | None:
    return side.interval(name).mean if name in side.names and side.values() else None
