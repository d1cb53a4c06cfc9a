"""Documentation of functions and classes that do not exist, to practise on.

A few thousand real names are soon known by heart, and a model that knows them need not read. These are put together
from the words of the real names that are for training, in any number: a name has to be copied from where it stands.
"""

import random
import re
from collections.abc import Sequence

from envs import derive_seed

from .python_docs import Entry
from .questions import split_of

NUMBER = 4000
"""How many there are."""

_MODULES = 600
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def entries(real: Sequence[Entry]) -> list[Entry]:
    """They are the same for the same real ones; none has the name of a real one.

    Args:
        real: whose words, parameters and defaults they are made from, as far as their names are for training.
    """
    known = {entry.name.rpartition(".")[2] for entry in real}
    own = [entry for entry in real if split_of(entry.name) == "train"]
    words = sorted({w.lower() for e in own for w in _WORDS.findall(e.name.rpartition(".")[2]) if len(w) > 1})
    parameters = sorted({parameter for entry in own for parameter in entry.defaults})
    values = [value for entry in own for value in entry.defaults.values()]
    rng = random.Random(derive_seed("invented"))
    modules = [".".join(rng.sample(words, rng.choice((1, 1, 2, 2, 3)))) for _ in range(_MODULES)]
    found: dict[str, Entry] = {}
    while len(found) < NUMBER:
        kind = rng.choice(("function", "function", "class"))
        short = _short(rng, words, kind)
        if short in known or short in found:
            continue
        module = rng.choice(modules)
        plain = rng.sample(words, rng.randrange(3))
        defaults = {
            parameter: rng.choice(values) if rng.random() < 0.6 else _value(rng, words)
            for parameter in rng.sample(parameters, rng.randint(1, 5))
            if parameter not in plain
        }
        arguments = [*plain, *(f"{parameter}={value}" for parameter, value in defaults.items())]
        name = f"{module}.{short}"
        doc = f"{' '.join(rng.choices(words, k=rng.randint(5, 12))).capitalize()}."
        found[short] = Entry(name, module, kind, f"{name}({', '.join(arguments)})", defaults, doc)
    return sorted(found.values())


def _short(rng: random.Random, words: Sequence[str], kind: str) -> str:
    """The last part of a name, as one is written: CamelCase, snake_case or run together."""
    parts = rng.sample(words, rng.choice((1, 2, 2, 3)))
    if kind == "class":
        return "".join(part.capitalize() for part in parts)
    return ("_" if rng.random() < 0.6 else "").join(parts)


def _value(rng: random.Random, words: Sequence[str]) -> str:
    number = rng.choice((rng.randrange(10), rng.randrange(1000), rng.randrange(100) / 10))
    return rng.choice((repr(number), repr(rng.choice(words))))
