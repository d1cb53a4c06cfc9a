"""`rl eval`: one evaluation, or several side by side."""

import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.errors import ConfigError, UpswingError
from rl.cli.launch import launch, parse

Row = tuple[str, str, dict[str, Any] | str]


def run(arguments: Sequence[str]) -> int:
    """Run the verb with what follows it on the command line; returns the exit code."""
    arguments = _with_setting(arguments)
    flags = parse("eval", arguments)
    if flags.help or flags.multirun:
        return launch("eval", arguments)

    from rl.cli import overrides
    from rl.cli.suite import evaluations

    folder = None if flags.config_dir is None else Path(flags.config_dir)
    settings = evaluations(overrides.without_end_slashes(flags.overrides), folder)
    if len(settings) == 1:
        kept = [*(["--cfg"] if flags.cfg else []), *(["--config-dir", str(folder)] if folder is not None else [])]
        return launch("eval", [*settings[0], *kept])
    searched = [] if folder is None else [overrides.search_in(str(folder))]
    return several([[*each, *searched] for each in settings], show=bool(flags.cfg))


def several(settings: Sequence[Sequence[str]], *, show: bool) -> int:
    """Evaluate one after the other and print them side by side. One that fails is shown, and the others go on.

    Args:
        settings: of each evaluation.
        show: print the configs instead.

    Returns:
        The exit code: 1 if one failed, or is under its `fail_under`.

    Raises:
        ConfigError: if the settings of one do not fit, before any is begun.
    """
    from rl.cli.compose import compose

    composed = [compose("eval", each) for each in settings]
    if show:
        print("---\n".join(each.text for each in composed), end="")
        return 0

    from rich.console import Console

    from rl.report.tables import side_by_side

    root = _root(composed[0].config.run_dir)
    rows: list[Row] = []
    problems: list[str] = []
    for number, each in enumerate(composed):
        each.config.run_dir = str(root / str(number))
        print(f"\n{number + 1} of {len(composed)}: {' '.join(settings[number])}", flush=True)
        row, problem = _one(each.config, each.text)
        rows.append(row)
        problems += [] if problem is None else [f"{row[0]}, {row[1]}: {problem}"]
    Console().print(side_by_side(rows))
    print(f"runs: {root}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _one(config: Any, text: str) -> tuple[Row, str | None]:
    """An evaluation, or what is on disk of one that is finished, and why it counts as failed."""
    from rl.cli.experiments import evaluated, shortfall

    directory = Path(config.run_dir)
    environment, model = (
        str(config.env.get("name")),
        str(config.client.model or config.run or config.model.source or ""),
    )
    if config.resume and (directory / "summary.json").is_file():
        summary = json.loads((directory / "summary.json").read_text("utf-8"))
        return (environment, summary["model"], summary), shortfall(config, summary)
    config.resume = config.resume and directory.is_dir()
    try:
        done = evaluated(config, text)
    except ConfigError:
        raise  # every other one would end in the same way, or the user has to decide
    except UpswingError as error:
        return (environment, model, str(error)), str(error)
    return (done.environment, done.model, done.summary), shortfall(config, done.summary)


def _root(given: str | None) -> Path:
    if given is not None:
        return Path(given)
    return Path("runs", "evals", datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def _with_setting(arguments: Sequence[str]) -> list[str]:
    """`--fail-under X`, as CI writes it, as the setting that it is."""
    rest = list(arguments)
    while "--fail-under" in rest:
        at = rest.index("--fail-under")
        if at + 1 == len(rest):
            raise ConfigError("--fail-under needs a number, for example --fail-under 0.8")
        rest[at : at + 2] = [f"fail_under={rest[at + 1]}"]
    return [f"fail_under={each[len('--fail-under=') :]}" if each.startswith("--fail-under=") else each for each in rest]


if __name__ == "__main__":
    from rl.cli.main import main

    sys.exit(main(["eval", *sys.argv[1:]]))
