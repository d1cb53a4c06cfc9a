"""`rl env init FOLDER`: an environment that works, to be turned into one's own."""

import re
from collections.abc import Sequence
from pathlib import Path

from envs.errors import ConfigError
from rl.cli.launch import Parser

TEMPLATE = Path(__file__).parent / "template"

HELP = """\
Begin an environment: a folder with code, README, tests and pyproject.toml that validates and evaluates as it is.

usage: rl env init FOLDER

  FOLDER   where; its last part is the environment's name: letters, digits, - and _

examples:
  rl env init my_env
  rl env init environments/word-search
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command with what follows it on the command line; returns the exit code."""
    parser = Parser(prog="rl env init", add_help=False, allow_abbrev=False)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("-h", "--help", action="store_true")
    given = parser.parse_args(arguments)
    if given.help:
        print(HELP, end="")
        return 0
    if given.folder is None:
        raise ConfigError("no folder named; expected rl env init FOLDER, for example rl env init my_env")
    folder = Path(given.folder)
    written = init(folder)
    print("\n".join(str(path) for path in written))
    shown = folder if folder.is_absolute() else f"./{folder}"
    print(f"\nnext: rl env validate {shown}\n      rl eval env={shown} tasks=8")
    return 0


def init(folder: Path) -> list[Path]:
    """Writes the template and returns its files.

    Raises:
        ConfigError: if the folder is not empty, or its name cannot be that of a Python module.
    """
    name = folder.resolve().name
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module):
        raise ConfigError(
            f"'{name}' cannot be the name of an environment; expected lower-case letters, digits, - and _, "
            "beginning with a letter"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already and is not empty; name another folder")
    words = {"module": module, "folder": name, "project": f"upswing-{module.replace('_', '-')}"}
    written = []
    for source in sorted(TEMPLATE.rglob("*.txt")):
        path = folder / source.relative_to(TEMPLATE).with_suffix("")
        path = path.with_name(path.name.replace("module", module))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub(r"\{\{(\w+)\}\}", lambda match: words[match[1]], source.read_text("utf-8")), "utf-8")
        written.append(path)
    return written
