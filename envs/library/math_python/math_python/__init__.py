"""Mathematics with a live Python: procedural problems of reasoning-gym whose answers are exact numbers.

The model's code runs in a sandbox of the rollout's own; its variables stay from one call to the next.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from envs import (
    ConfigError,
    Environment,
    Limits,
    Message,
    Rubric,
    SandboxPool,
    Task,
    Taskset,
    boxed,
    derive_seed,
    python_repl,
)
from envs.clients.scripted import tool_call
from envs.errors import unknown_name

_spec = importlib.util.find_spec("reasoning_gym")
if _spec is None or _spec.origin is None:  # importing it takes seconds, and another process does
    raise ModuleNotFoundError("No module named 'reasoning_gym'", name="reasoning_gym")

from .problems import KINDS  # noqa: E402

SYSTEM = "Use Python. Then answer with the number alone."
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+|/\d+)?")
_boxed = boxed()


def load_environment(
    kinds: Sequence[str] = tuple(KINDS),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    train_tasks: int = 1000,
    eval_tasks: int = 128,
    max_turns: int = 4,
    system: str = SYSTEM,
    seed: int = 0,
    most: int = 32,
) -> Environment:
    """Problems of several kinds, equally often.

    Args:
        kinds: datasets of reasoning-gym.
        options: settings of them, like `{products: {max_digits: 3}}`.
        train_tasks: at most this many tasks to train on; fewer where there are not as many different questions.
        eval_tasks: at most this many tasks to evaluate on.
        max_turns: the most answers of the model, calls of Python included.
        system: what is said before the question.
        seed: decides the problems.
        most: how many sandboxes there may be at once.
    """
    for kind in [*kinds, *(options or {})]:
        if kind not in KINDS:
            raise unknown_name("kind of problem", kind, KINDS, "env=reasoning_gym has more, without Python")
    if not kinds:
        raise ConfigError(f"kinds is empty; expected some of {', '.join(KINDS)}")
    settings = {kind: dict((options or {}).get(kind, {})) for kind in kinds}
    wanted = {"train": train_tasks, "eval": eval_tasks}

    @cache
    def made() -> list[Task]:
        # A quarter is for evaluation, give or take some, and some questions come twice.
        count = 64 + max(2 * train_tasks, 6 * eval_tasks)
        found = {p["question"]: p for p in _problems(settings, derive_seed(seed, "math_python"), count)}
        return [
            Task.ask(f"{p['kind']}-{i}", question, p["answer"], system=system or None, code=p["code"])
            for i, (question, p) in enumerate(found.items())
        ]

    def tasks(split: str) -> list[Task]:
        return [task for task in made() if split_of(str(task.prompt[-1]["content"])) == split][: wanted[split]]

    pool = SandboxPool(limits=Limits(wall=10, memory=2**29, disk=2**26, deadline=600), most=most)
    return Environment(
        tasks=Taskset.from_function(tasks),
        harness=python_repl(pool, max_turns=max_turns),
        rubric=Rubric({right_number: 1.0, calls: 0.0}),
        demonstrate=demonstrate,
    )


def split_of(question: str) -> str:
    """A quarter of all questions is for evaluation. Nothing but the question decides, so no argument ever moves one."""
    return "eval" if derive_seed("split", question) % 4 == 0 else "train"


def right_number(completion: str, answer: str) -> float:
    r"""1 if the number is the answer, exactly: the one in the last `\boxed{…}`, else the only one of the message."""
    box = _boxed(completion)
    return float(numbers(completion if box is None else box) == {Fraction(answer)})


def numbers(text: str) -> set[Fraction]:
    """The numbers in a text, like 12, -1,000, 0.5 and 3/4; none of those with more digits than Python reads."""
    found = set()
    for match in _NUMBER.findall(text):
        try:
            found.add(Fraction(match.replace(",", "")))
        except (ValueError, ZeroDivisionError):
            return set()
    return found


def calls(messages: Sequence[Message]) -> float:
    """How often Python was called."""
    return float(sum(message["role"] == "tool" for message in messages))


def demonstrate(task: Task, sample: int) -> list[Message]:
    """Somebody who computes in one call, and says what came out."""
    return [
        tool_call("python", json.dumps({"code": task.info["code"]}), "call_0"),
        {"role": "tool", "tool_call_id": "call_0", "name": "python", "content": f"{task.answer}\n"},
        {"role": "assistant", "content": str(task.answer)},
    ]


def _problems(kinds: Mapping[str, Mapping[str, Any]], seed: int, count: int) -> list[dict[str, str]]:
    """
    Raises:
        ConfigError: if a dataset refuses its settings.
    """
    ran = subprocess.run(
        [sys.executable, "-P", Path(__file__).with_name("problems.py")],
        input=json.dumps({"kinds": kinds, "seed": seed, "count": count}),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
        raise ConfigError(f"reasoning-gym makes no problems of {dict(kinds)}: {last}")
    found: list[dict[str, str]] = json.loads(ran.stdout.splitlines()[-1])
    return found
