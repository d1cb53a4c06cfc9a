"""`rl report RUN …`: the page, the picture and the table of runs and sweeps, from their directories alone."""

from collections.abc import Sequence
from pathlib import Path

from envs.errors import ConfigError
from rl.cli.conf import choice
from rl.cli.launch import Parser

HELP = """\
Write report.html and reward.png into the directory of a run or a sweep, and print its table.

usage: rl report RUN …

  RUN   directory that `rl train` wrote, of a finished run or of one at work; its name is enough for one below runs/.
        A directory that holds several runs is compared, and so are several RUNs.

examples:
  rl report runs/NAME
  rl report runs/sweeps/NAME
  rl report runs/FIRST runs/SECOND
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb with what follows it on the command line; returns the exit code."""
    parser = Parser(prog="rl report", add_help=False, allow_abbrev=False)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    given = parser.parse_args(arguments)
    if given.help:
        print(HELP, end="")
        return 0
    if not given.runs:
        raise ConfigError("no run named; expected rl report RUN, for example the directory that `rl train` printed")
    report([directory(name) for name in given.runs])
    return 0


def report(directories: Sequence[Path]) -> None:
    """Write the report of each directory and print its table; a table of them all, if there are several.

    Raises:
        UpswingError: if one holds no run, or a file in it is damaged.
    """
    from rich.console import Console

    from rl.report import compare_table, find_runs, read_run, summary_table, write_report, write_sweep_report

    console = Console()
    compared: list[Path] = []
    for directory in directories:
        inside = find_runs(directory) if directory.is_dir() else []
        if inside and directory not in inside:
            paths = write_sweep_report(directory, choice)
            console.print(compare_table(inside, choice))
            compared += inside
        else:
            paths = write_report(directory)
            console.print(summary_table(read_run(directory, rollouts=False).summary))
            compared.append(directory)
        console.print(f"report: {paths.html}\npicture: {paths.png}", soft_wrap=True)
    if len(directories) > 1:
        console.print(compare_table(compared, choice))


def directory(name: str) -> Path:
    """The directory itself, or that of this name below runs/."""
    named = Path("runs", name)
    return named if named.is_dir() and not Path(name).exists() else Path(name)
