"""`rl env …`: everything one does with environments that needs no model."""

from collections.abc import Callable, Sequence

from envs.errors import unknown_name
from rl.cli import env_init, env_replay, env_validate, envs

HELP = """\
Work on environments. No model is needed.

usage: rl env COMMAND [arguments]

  list                       those that a bare name loads (rl envs does the same)
  show NAME [KEY=VALUE …]    what one is made of (rl envs NAME)
  init FOLDER                begin one: code, README, tests, pyproject.toml
  validate NAME [KEY=VALUE …]  is it fit for use?
  replay RUN [KEY=VALUE …]   score a run's saved rollouts with today's rubric

  NAME   an environment's name, its folder (./my_environment) or its package
  RUN    a run's directory, its name below runs/, or a journal (rollouts.jsonl)

examples:
  rl env init my_env
  rl env validate my_env
  rl env show wordle
  rl env replay runs/NAME --watch

rl env COMMAND --help tells what a command takes.
"""

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "list": envs.run,
    "show": envs.run,
    "init": env_init.run,
    "validate": env_validate.run,
    "replay": env_replay.run,
}


def run(arguments: Sequence[str]) -> int:
    """Run the verb with what follows it on the command line; returns the exit code."""
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if command not in COMMANDS:
        raise unknown_name("command of rl env", command, COMMANDS, "see rl env --help")
    return COMMANDS[command](rest)
