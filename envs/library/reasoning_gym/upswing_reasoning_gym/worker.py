"""The process that makes and scores the entries of reasoning-gym: reads JSON lines, writes JSON lines. Run as a script.

A process of its own because the package takes seconds and 120 MB to import, because some of its scores compute with
what the model wrote, which may take for ever, and because a few call `eval` on it. What they are given here instead
reads literals and arithmetic.
"""

import ast
import copy
import json
import os
import random
import re
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

SIZE = 500
"""Entries of one seed; some datasets make all of them at once."""
MEMORY = 4 * 2**30
"""Bytes of address space: a tower of powers takes an error from here, and not the machine's memory."""
GRACE = 2.0
"""CPU seconds until an instruction that cannot be interrupted ends the process."""
EVALUATING = (
    "algorithmic.string_insertion",
    "algorithmic.spiral_matrix",
    "algorithmic.binary_matrix",
    "games.n_queens",
)
FUNCTIONS = frozenset(
    "Abs abs acos acosh asin asinh atan atanh cos cosh cot csc erf exp ln log sec sin sinh sqrt tan tanh".split()  # noqa: SIM905
)
_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Name, ast.Load)


NEEDED: Mapping[str, Callable[[str, Any], bool]] = {
    "puzzle24": lambda text, entry: sorted(map(int, re.findall(r"\d+", text))) == sorted(entry["metadata"]["numbers"]),
    "game_of_life_halting": lambda text, entry: text == entry["answer"],
}
"""What else an answer needs to count where the package's score forgets it: the numbers given; the right one of two."""


class _LateError(BaseException):
    """Not an Exception: nothing in between shall catch it."""


def only_arithmetic(text: str) -> None:
    """Refuses whatever could do more than compute a number or a formula.

    Raises:
        SyntaxError: as for a text that is no expression at all.
    """
    for node in ast.walk(ast.parse(text.strip(), mode="eval")):
        number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
        if isinstance(node, ast.Call):
            allowed = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and not node.keywords
        else:
            allowed = number or isinstance(node, _NODES)
        if not allowed:
            raise SyntaxError(f"{type(node).__name__} in {text[:100]!r}")


def load() -> dict[str, Any]:
    """Datasets by name, with the classes of their settings."""
    import sympy
    import sympy.parsing.sympy_parser as parser

    evaluating = parser.parse_expr

    def parse_expr(text: str, *args: Any, **kwargs: Any) -> Any:
        only_arithmetic(text)
        return evaluating(text, *args, **kwargs)

    sympy.parse_expr = sympy.parsing.parse_expr = parser.parse_expr = parse_expr
    from reasoning_gym.factory import DATASETS

    for name in EVALUATING:
        vars(import_module(f"reasoning_gym.{name}"))["eval"] = ast.literal_eval
    return {name: DATASETS[name] for name in sorted(DATASETS) if name != "composite"}


def options(settings: type) -> dict[str, Any]:
    """What a dataset takes, and by default; its seed and its size are not for the user to set."""
    found = {}
    for field in fields(settings):
        if field.name not in ("seed", "size"):
            made = field.default_factory() if field.default_factory is not MISSING else field.default
            found[field.name] = repr(made)
    return found


class Datasets:
    """Entries by their number, of all datasets that were asked for lately."""

    def __init__(self) -> None:
        self._classes = load()
        self._made = lru_cache(maxsize=64)(self._make)
        self._entry = lru_cache(maxsize=20_000)(self._generate)

    def names(self, job: Any) -> Any:
        return {"names": list(self._classes)}

    def options(self, job: Any) -> Any:
        return {"options": options(self._classes[job["dataset"]][1])}

    def check(self, job: Any) -> Any:
        self._made(*_key({"seed": 0, **job}))
        return {}

    def entries(self, job: Any) -> Any:
        found = [self._entry(*_key(job), index) for index in job["indices"]]
        return {"entries": [{"question": entry["question"], "answer": entry["answer"]} for entry in found]}

    def score(self, job: Any) -> Any:
        entry = copy.deepcopy(self._entry(*_key(job), job["index"]))
        dataset = self._made(*_key(job))
        random.seed(0)
        needed = NEEDED.get(job["dataset"])
        if needed is not None and not needed(job["answer"], entry):
            return {"score": 0.0}
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, job["seconds"])
            signal.setitimer(signal.ITIMER_PROF, job["seconds"] + GRACE)  # nothing catches that one
            return {"score": float(dataset.score_answer(job["answer"], entry))}
        except (_LateError, Exception) as error:  # noqa: BLE001 - what a score raises about a text, the text brought about
            return {"unreadable": repr(error)}
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _make(self, name: str, settings: str, seed: int) -> Any:
        made, kind = self._classes[name]
        random.seed(seed)
        return made(kind(seed=seed, size=SIZE, **json.loads(settings)))

    def _generate(self, name: str, settings: str, seed: int, index: int) -> Any:
        dataset = self._made(name, settings, seed)
        random.seed(seed + index)  # a few draw from the module's generator beside their own
        return dataset[index]


def _key(job: Any) -> tuple[str, str, int]:
    return job["dataset"], json.dumps(job["options"], sort_keys=True), job["seed"]


@cache
def _replies() -> Any:
    """Where replies go; what the package prints goes nowhere."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return replies


def _ring(*_: Any) -> None:
    raise _LateError("took too long")


def main() -> None:
    signal.signal(signal.SIGVTALRM, _ring)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    replies = _replies()
    datasets = Datasets()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        job = json.loads(line)
        try:
            reply = getattr(datasets, job.pop("op"))(job)
        except Exception as error:  # noqa: BLE001 - settings that a dataset refuses, each in its way
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
