"""`rl env validate NAME`: is an environment fit for use? Without a model."""

from collections.abc import Callable, Sequence
from functools import partial

from rich.console import Console
from rich.markup import escape

from envs.errors import ConfigError, MissingPackageError, UpswingError
from envs.resolve import list_environments
from envs.validation import Check, validate
from rl.cli.envs import values
from rl.cli.launch import Parser

HELP = """\
Check an environment without a model: ids unique, splits disjoint, everything survives JSON, the same twice; gold
answers (its demonstrations, or task.answer) score high, empty ones and those to other tasks low.

usage: rl env validate NAME [KEY=VALUE …] [--tasks N] [--high X] [--low X]
       rl env validate --all

  NAME        an environment's name, its folder (./my_environment) or its package
  --all       all that `rl envs` lists, one after the other
  KEY=VALUE   arguments of the environment
  --tasks N   tasks of each split that are rolled out, by default 16
  --high X    the mean reward that gold answers must reach, by default 0.9
  --low X     the mean reward that empty and wrong answers may reach, by default 0.5

The exit code is 1 if a check does not pass. With --all, environments whose packages are not installed are left out, and
named at the end.

examples:
  rl env validate my_env
  rl env validate reverse_text unit=phrase --tasks 64
  rl env validate --all --tasks 4
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command with what follows it on the command line; returns the exit code."""
    parser = Parser(prog="rl env validate", add_help=False, allow_abbrev=False)
    parser.add_argument("name", nargs="?")
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--high", type=float, default=0.9)
    parser.add_argument("--low", type=float, default=0.5)
    parser.add_argument("-h", "--help", action="store_true")
    given = parser.parse_intermixed_args(arguments)
    if given.help:
        print(HELP, end="")
        return 0
    if given.all == (given.name is not None):
        raise ConfigError(
            f"{'--all goes with no name' if given.all else 'no environment named'}; expected rl env validate NAME, for "
            "example rl env validate wordle, or rl env validate --all"
        )
    if given.tasks < 1:
        raise ConfigError(f"--tasks {given.tasks}; expected at least 1")
    check = partial(validate, tasks=given.tasks, high=given.high, low=given.low)
    if not given.all:
        return show(given.name, check(given.name, values(given.arguments)), Console())
    return check_all([info.name for info in list_environments()], check, Console())


def check_all(names: Sequence[str], check: Callable[[str], Sequence[Check]], console: Console) -> int:
    """Print what is found of each environment, and how many are fit; returns the exit code.

    One that cannot be loaded, for want of something that this machine has not, does not keep the others from it. One
    whose packages are not installed is not unfit; it is not checked, and said to be not.
    """
    unfit, missing = [], []
    for name in names:
        console.rule(escape(name), align="left")
        try:
            code = show(name, check(name), console)
        except MissingPackageError as error:
            console.print(f"[yellow]–[/yellow] not checked: {escape(str(error))}", soft_wrap=True)
            missing.append(name)
            continue
        except UpswingError as error:
            console.print(f"[bold red]✗[/bold red] {escape(str(error))}", soft_wrap=True)
            code = 1
        unfit += [name] if code else []
    console.rule()
    told = f": not {', '.join(unfit)}" if unfit else ""
    left = f"; not checked, for want of packages: {', '.join(missing)}" if missing else ""
    passed = len(names) - len(unfit) - len(missing)
    console.print(f"{passed} of {len(names)} environments pass{escape(told + left)}", soft_wrap=True)
    return 1 if unfit else 0


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
