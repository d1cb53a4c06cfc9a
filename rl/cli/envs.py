"""`rl envs`, `rl env list`: which environments there are. `rl envs NAME`, `rl env show NAME`: what one is made of."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs.annotations import describe as words
from envs.environment import Environment
from envs.errors import ConfigError
from envs.resolve import EnvironmentInfo, find_environment, list_environments, load_environment
from envs.signature import annotations_of
from envs.tool_schema import parse_docstring
from rl.cli.launch import Parser

HELP = """\
List the environments that a bare name loads, or describe one.

usage: rl envs [NAME [KEY=VALUE …]]

  NAME   an environment's name, its folder (./my_environment) or its package

examples:
  rl envs
  rl envs reverse_text
  rl envs reverse_text max_length=12
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb with what follows it on the command line; returns the exit code."""
    parser = Parser(prog="rl envs", add_help=False, allow_abbrev=False)
    parser.add_argument("name", nargs="?")
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    given = parser.parse_args(arguments)
    if given.help:
        print(HELP, end="")
    elif given.name is None:
        Console().print(listing(list_environments()))
    else:
        info = find_environment(given.name)
        describe(info, load_environment(given.name, **values(given.arguments)), Console())
    return 0


def listing(infos: Sequence[EnvironmentInfo]) -> Table:
    """A table of environments."""
    table = Table(header_style="bold", border_style="dim")
    table.add_column("name", no_wrap=True)
    table.add_column("source")
    table.add_column("summary")
    table.add_column("arguments")
    for info in infos:
        table.add_row(info.name, info.source, escape(info.summary), escape(_argument_names(info)))
    return table


def describe(info: EnvironmentInfo, environment: Environment, console: Console) -> None:
    """Print what an environment is: its text, arguments, tasks, rewards and a task."""
    console.print(f"[bold]{escape(environment.name)}[/bold] {escape(environment.version)}")
    console.print(f"[dim]{info.source}: {escape(str(info.path))}[/dim]", soft_wrap=True)
    console.print("\n" + escape(_flowing(inspect.getdoc(inspect.getmodule(info.function())) or info.summary)))
    console.print("\n[bold]arguments[/bold]  (on the command line: env.NAME=VALUE)", arguments(info))
    console.print("\n[bold]tasks[/bold]")
    for split in environment.tasks.splits:
        note = ", for evaluation only" if split in environment.tasks.reserved else ""
        console.print(f"  {split}: {len(environment.tasks.split(split)):,}{note}")
    console.print("\n[bold]rewards[/bold]  (weight 0: observed only)")
    for name, weight in environment.rubric.weights.items():
        console.print(f"  {weight:g} × {escape(name)}")
    _show_task(environment, console)


def arguments(info: EnvironmentInfo) -> Table:
    """A table of what an environment's `load_environment` takes."""
    function = info.function()
    meanings = parse_docstring(inspect.getdoc(function) or "")[1]
    hints = annotations_of(function)
    table = Table(box=None, show_header=False, padding=(0, 1))
    for name, parameter in info.arguments.parameters.items():
        kind = words(hints[name]) if name in hints else ""
        default = "required" if parameter.default is parameter.empty else _short(repr(parameter.default))
        table.add_row("", name, escape(kind), escape(default), escape(meanings.get(name, "")))
    return table


def _show_task(environment: Environment, console: Console) -> None:
    task = environment.tasks[0]
    console.print(f"\n[bold]a task[/bold]  {escape(task.id)}")
    for message in task.prompt:
        console.print(f"  [dim]{message['role']}:[/dim] {escape(message['content'] or '')}", highlight=False)
    console.print(f"  [dim]answer:[/dim] {escape(str(task.answer))}", highlight=False)


def _flowing(text: str) -> str:
    """A docstring whose paragraphs are one line each, for the terminal to wrap; indented lines stay as they are."""
    return re.sub(r"(?<!\n)\n(?![\n ])", " ", text)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _argument_names(info: EnvironmentInfo) -> str:
    try:
        return ", ".join(info.arguments.parameters)
    except ConfigError as error:  # a package it needs is missing: say so in its row, and list the others
        return f"({error})"


def values(arguments: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE, read as `env.KEY=VALUE` is by the verbs that run experiments; `a.b=1` is a mapping in a mapping."""
    from rl.cli.overrides import parse

    found: dict[str, Any] = {}
    for override in parse(arguments):
        *outer, last = override.key_or_group.split(".")
        inner = found
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = override.value()
    return found
