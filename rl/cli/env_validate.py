"""`rl env validate NAME`: is an environment fit for use? Without a model."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from envs.errors import ConfigError
from envs.validation import Check, validate
from rl.cli.envs import values
from rl.cli.launch import Parser

HELP = """\
Check an environment without a model: ids unique, splits disjoint, everything survives JSON, the same twice; gold
answers (its demonstrations, or task.answer) score high, empty ones and those to other tasks low.

usage: rl env validate NAME [KEY=VALUE …] [--tasks N] [--high X] [--low X]

  NAME        an environment's name, its folder (./my_environment) or its package
  KEY=VALUE   arguments of the environment
  --tasks N   tasks of each split that are rolled out, by default 16
  --high X    the mean reward that gold answers must reach, by default 0.9
  --low X     the mean reward that empty and wrong answers may reach, by default 0.5

The exit code is 1 if a check does not pass.

examples:
  rl env validate my_env
  rl env validate reverse_text unit=phrase --tasks 64
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command with what follows it on the command line; returns the exit code."""
    parser = Parser(prog="rl env validate", add_help=False, allow_abbrev=False)
    parser.add_argument("name", nargs="?")
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--high", type=float, default=0.9)
    parser.add_argument("--low", type=float, default=0.5)
    parser.add_argument("-h", "--help", action="store_true")
    given = parser.parse_intermixed_args(arguments)
    if given.help:
        print(HELP, end="")
        return 0
    if given.name is None:
        raise ConfigError("no environment named; expected rl env validate NAME, for example rl env validate wordle")
    if given.tasks < 1:
        raise ConfigError(f"--tasks {given.tasks}; expected at least 1")
    checks = validate(given.name, values(given.arguments), tasks=given.tasks, high=given.high, low=given.low)
    return show(given.name, checks, Console())


def show(name: str, checks: Sequence[Check], console: Console) -> int:
    """Print what was found; returns the exit code."""
    marks = {True: "[green]✓[/green]", False: "[bold red]✗[/bold red]", None: "[yellow]–[/yellow]"}
    for check in checks:
        console.print(f"{marks[check.passed]} {check.name:<36}", f"[dim]{escape(check.detail)}[/dim]", soft_wrap=True)
    failed = [check for check in checks if check.passed is False]
    left = sum(check.passed is None for check in checks)
    tail = f"; {left} could not be asked" if left else ""
    console.print(f"\n{escape(name)}: {len(checks) - len(failed) - left} of {len(checks)} checks passed{tail}")
    return 1 if failed else 0
