"""Tasks without end: a function is a few steps over a list of numbers or words, and a result.

What a function does, on inputs that are always the same, decides its split: two descriptions of one function are never
apart, and of those that do the same only one is asked for.
"""

import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from envs import ConfigError, Task, TasksetError, derive_seed

PROMPT = """\
Write a Python function `solve({argument})`. {about}
{steps}
{result}

For example, `solve({example})` returns `{returned}`. Answer with the whole function in one Python block."""


class Family(NamedTuple):
    """A kind of function. Steps and results are a description with the expression that it stands for.

    Attributes:
        argument: its name and type.
        about: what it holds.
        begin: makes the list `xs` of it.
        steps: list to list; `{k}` stands for a small number.
        results: list to what is returned.
        draw: an input.
    """

    argument: str
    about: str
    begin: str
    steps: tuple[tuple[str, str], ...]
    results: tuple[tuple[str, str], ...]
    draw: Callable[[random.Random], Any]


def _numbers(draw: random.Random) -> list[int]:
    return [draw.randint(-20, 40) for _ in range(draw.randint(4, 12))]


def _text(draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(4, 10)))


WORDS = (
    *(
        "amber",
        "bird",
        "cloud",
        "a",
        "it",
        "ember",
        "forest",
        "garden",
        "hill",
        "ice",
        "lantern",
        "moon",
        "north",
        "of",
    ),
    *("otter", "pine", "river", "stone", "tree", "under", "valley", "winter", "yarn", "zebra", "tent", "level", "noon"),
)
NUMBERS = Family(
    "numbers: list[int]",
    "It takes a list of whole numbers, which may be empty, and does this, step by step:",
    "list(numbers)",
    (
        ("keep only the numbers that {k} divides", "[x for x in xs if x % {k} == 0]"),
        ("keep only the numbers greater than {k}", "[x for x in xs if x > {k}]"),
        ("keep only the numbers x with x * x < {k} * 100", "[x for x in xs if x * x < {k} * 100]"),
        ("drop the numbers at places {k}, 2 * {k} and so on, from 1", "[x for i, x in enumerate(xs, 1) if i % {k}]"),
        ("replace every number by its square", "[x * x for x in xs]"),
        ("multiply every number by {k}", "[{k} * x for x in xs]"),
        ("replace every number x by x % {k}", "[x % {k} for x in xs]"),
        ("add its position to every number, the first being at 0", "[x + i for i, x in enumerate(xs)]"),
        ("reverse the order", "xs[::-1]"),
        ("sort in ascending order", "sorted(xs)"),
        ("sort by distance from {k}, equal ones staying in order", "sorted(xs, key=lambda x: abs(x - {k}))"),
        ("remove numbers that came before, keeping the first of each", "list(dict.fromkeys(xs))"),
        ("replace every number by the sum of it and all before it", "[sum(xs[: i + 1]) for i in range(len(xs))]"),
        ("take the differences: each number minus the one before it", "[b - a for a, b in zip(xs, xs[1:])]"),
        ("move the first number to the end", "xs[1:] + xs[:1]"),
    ),
    (
        ("return the list", "xs"),
        ("return the sum", "sum(xs)"),
        ("return the largest number, or None if there is none", "max(xs, default=None)"),
        ("return how many different numbers there are", "len(set(xs))"),
        ("return the largest minus the smallest, or 0 if there are none", "max(xs, default=0) - min(xs, default=0)"),
        ("return a list of the first and the last number, empty if there are none", "xs[:1] + xs[-1:]"),
        ("return how many numbers are negative", "sum(x < 0 for x in xs)"),
    ),
    _numbers,
)  # fmt: skip
TEXT = Family(
    "text: str",
    "It splits the text at white space into words and does this, step by step:",
    "text.split()",
    (
        ("keep only the words with more than {k} characters", "[w for w in xs if len(w) > {k}]"),
        ("keep only the words that contain an e", "[w for w in xs if 'e' in w]"),
        ("drop the words at places {k}, 2 * {k} and so on, from 1", "[w for i, w in enumerate(xs, 1) if i % {k}]"),
        ("reverse the characters of every word", "[w[::-1] for w in xs]"),
        ("cut every word after {k} characters", "[w[:{k}] for w in xs]"),
        ("remove a, e, i, o and u from every word", "[''.join(c for c in w if c not in 'aeiou') for w in xs]"),
        ("put its number of characters after every word, as in tree4", "[w + str(len(w)) for w in xs]"),
        ("sort by number of characters, equal ones staying in order", "sorted(xs, key=len)"),
        ("sort alphabetically", "sorted(xs)"),
        ("remove words that came before, keeping the first of each", "list(dict.fromkeys(xs))"),
        ("reverse the order of the words", "xs[::-1]"),
        ("move the first word to the end", "xs[1:] + xs[:1]"),
        ("turn every word to upper case", "[w.upper() for w in xs]"),
    ),
    (
        ("return the words joined by single spaces", "' '.join(xs)"),
        ("return the words joined by hyphens", "'-'.join(xs)"),
        ("return the list of the words' lengths", "[len(w) for w in xs]"),
        ("return the longest word, the first if several, or '' if there is none", "max(xs, key=len, default='')"),
        ("return a dictionary from each word to how often it occurs", "{w: xs.count(w) for w in xs}"),
        ("return the first characters of the words as one text", "''.join(w[:1] for w in xs)"),
    ),
    _text,
)  # fmt: skip
FAMILIES = (NUMBERS, TEXT)
_PATIENCE = 2000
"""After so many functions in a row that are not new, there are no more."""
_CASES = 16
"""Inputs that tell what a function does; those that a task is tested with are among them."""


def made(split: str, count: int, steps: int, cases: int, seed: int) -> list[Task]:
    """`count` tasks of a split; the same ones for the same arguments."""
    if not 1 <= steps <= 3 or not 2 <= cases < _CASES:
        raise ConfigError(f"steps={steps}, cases={cases}; expected 1 to 3 and 2 to {_CASES - 1}")
    found: dict[str, Task] = {}
    drawn = _drawn(steps, derive_seed(seed, split))
    missed = 0
    while missed < _PATIENCE:
        family, parts, result = next(drawn)
        did = _does(family, parts, result)
        behaviour = json.dumps(did)
        if _split_of(behaviour) != split or behaviour in found or _idle(family, parts, result, did):
            missed += 1
            continue
        missed = 0
        task_id = f"{split}-{len(found)}"
        found[behaviour] = _task(task_id, family, parts, result, did, cases)
        if len(found) == count:
            return list(found.values())
    raise TasksetError(
        f"only {len(found)} different functions were found for split '{split}', not {count}; ask for fewer"
    )


def _drawn(steps: int, seed: int) -> Iterator[tuple[Family, list[tuple[str, str]], tuple[str, str]]]:
    draw = random.Random(seed)
    while True:
        family = draw.choice(FAMILIES)
        chosen = draw.sample(family.steps, steps)
        k = [draw.randint(2, 6) for _ in chosen]
        parts = [
            (words.replace("{k}", str(n)), code.replace("{k}", str(n)))
            for (words, code), n in zip(chosen, k, strict=True)
        ]
        yield family, parts, draw.choice(family.results)


def _code(family: Family, parts: list[tuple[str, str]], result: tuple[str, str]) -> str:
    lines = [f"def solve({family.argument}):", f"    xs = {family.begin}"]
    lines += [f"    xs = {expression}" for _, expression in parts]
    return "\n".join([*lines, f"    return {result[1]}"])


def _does(family: Family, parts: list[tuple[str, str]], result: tuple[str, str]) -> list[Any]:
    """What the function returns for the inputs of its family."""
    name = family.argument.partition(":")[0]
    first, *rest = (_function(name, family.begin), *(_function("xs", code) for _, code in (*parts, result)))
    values = [first(argument) for argument in _inputs(family)]
    for step in rest:
        values = list(map(step, values))
    return values


@cache
def _function(argument: str, expression: str) -> Callable[[Any], Any]:
    """One of the expressions above as a function."""
    return eval(f"lambda {argument}: {expression}")


@cache
def _inputs(family: Family) -> list[Any]:
    draw = random.Random(derive_seed(0, family.argument))
    return [family.draw(draw) for _ in range(_CASES - 1)] + [type(family.draw(draw))()]


def _idle(family: Family, parts: list[tuple[str, str]], result: tuple[str, str], did: list[Any]) -> bool:
    """Is there a step without effect, or does nearly every input give the same?"""
    without = ([*parts[:i], *parts[i + 1 :]] for i in range(len(parts)))
    return any(_does(family, rest, result) == did for rest in without) or any(did.count(v) > _CASES // 3 for v in did)


def _split_of(behaviour: str) -> str:
    return "eval" if derive_seed("split", behaviour) % 5 == 0 else "train"


def _task(
    id: str,
    family: Family,
    parts: list[tuple[str, str]],
    result: tuple[str, str],
    did: list[Any],
    cases: int,
) -> Task:
    inputs, code = _inputs(family), _code(family, parts, result)
    example, *hidden = random.Random(derive_seed(0, code)).sample(range(_CASES - 1), cases)
    hidden.append(_CASES - 1)  # without anything in it
    listed = "\n".join(f"{number}. {words}" for number, (words, _) in enumerate(parts, start=1))
    question = PROMPT.format(
        argument=family.argument,
        about=family.about,
        steps=listed,
        result=f"{len(parts) + 1}. {result[0]}",
        example=repr(inputs[example]),
        returned=repr(did[example]),
    )
    tests = [{"args": [inputs[i]], "expected": did[i]} for i in hidden]
    return Task.ask(id, question, code, function="solve", cases=tests)
