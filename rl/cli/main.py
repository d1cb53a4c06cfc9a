"""The command `rl`: experiments take Hydra's overrides, verbs over objects take their names.

Exit codes: 0 done, 1 the run failed, 2 the command or the config does not fit, 130 stopped by Ctrl-C.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from envs.errors import ConfigError, UpswingError, unknown_name
from rl import __version__

VERBS = {  # name -> (module with `run(arguments) -> exit code`, what it does)
    "train": ("rl.cli.train", "warm start, evaluate, reinforce, evaluate"),
    "sft": ("rl.cli.sft", "supervised training on an environment's demonstrations"),
    "eval": ("rl.cli.eval", "evaluate a model in an environment"),
    "chat": ("rl.cli.chat", "talk to a model in the terminal"),
    "serve": ("rl.cli.serve", "serve a model over HTTP, as SGLang and OpenAI do"),
    "parity": ("rl.cli.parity", "hold an engine's log-probabilities against the trainer's"),
    "report": ("rl.cli.report", "write the report of a run or a sweep"),
    "export": ("rl.cli.export", "write a run's weights as a Hugging Face directory"),
    "algorithms": ("rl.cli.algorithms", "list the algorithms, or describe one"),
    "envs": ("rl.cli.envs", "list the environments, or describe one"),
    "view": ("rl.cli.view", "look at a run's rollouts"),
    "env": ("rl.cli.env", "begin, validate or replay an environment"),
}

HELP = """\
Upswing: write one environment, then evaluate, train and look.

usage: rl VERB [arguments]

{verbs}

examples:
  rl train experiment=reverse_text seed=1
  rl train env=wordle algorithm=rloo optimizer.lr=1e-4
  rl train -m algorithm=grpo,rloo seed=1,2,3
  rl eval env=wordle client=openai client.base_url=http://localhost:30000/v1 client.model=qwen
  rl chat model=smollm2_135m prompt="What is the capital of France?"
  rl report runs/NAME
  rl envs wordle
  rl env init my_env

rl VERB --help tells what a verb takes.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: what follows `rl`; None takes the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return dispatch(given)
    except UpswingError as error:
        print(f"{_red('error:')} {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def dispatch(arguments: list[str]) -> int:
    """Hand the arguments to their verb.

    Raises:
        ConfigError: if there is no such verb.
    """
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if verb == "--version":
        print(f"upswing {__version__}")
        return 0
    if verb not in VERBS:
        raise unknown_name("verb", verb, VERBS, "see rl --help")
    code: int = importlib.import_module(VERBS[verb][0]).run(rest)
    return code


def help_text() -> str:
    """What `rl --help` says."""
    return HELP.format(verbs="\n".join(f"  {verb:<12}{does}" for verb, (_, does) in VERBS.items()))


def _red(text: str) -> str:
    plain = "NO_COLOR" in os.environ or not sys.stderr.isatty()
    return text if plain else f"\x1b[1;31m{text}\x1b[0m"


if __name__ == "__main__":
    sys.exit(main())
