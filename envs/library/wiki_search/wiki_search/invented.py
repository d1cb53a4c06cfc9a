"""Documentation of functions and classes that do not exist, to practise on.

A few thousand real names are soon known by heart, and a model that knows them need not read. These are put together
from the words of the real names that are for training, in any number: a name has to be copied from where it stands, a
default value to be read. All else is as on real pages, whose descriptions they have: how many sections there are, what
these are called, and how long they are.
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from envs import derive_seed

from .python_docs import Entry
from .questions import split_of

NUMBER = 5000
"""How many functions and classes there are."""

_MODULES = 600
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_VERSIONS = [f"1.{minor}.0" for minor in range(5, 27)] + [f"2.{minor}.0" for minor in range(9)]


def entries(real: Sequence[Entry]) -> list[Entry]:
    """They are the same for the same real ones; none has the name of a real one.

    Args:
        real: whose words, parameters, defaults, modules and descriptions they are made from, as far as their names are
            for training.
    """
    source = _source([entry for entry in real if split_of(entry.name) == "train"])
    taken = {_last(entry.name) for entry in real}
    rng = random.Random(derive_seed("invented"))
    made = [".".join(rng.sample(source.words, rng.choice((1, 1, 2)))) for _ in range(_MODULES)]
    found: list[Entry] = []
    for _ in range(NUMBER):
        model = rng.choice(source.models)
        module = rng.choice((rng.choice(made), rng.choice(made), rng.choice(source.modules), model.module))
        name = f"{module}.{_unused(rng, source.words, taken, model.kind)}"
        found.append(_entry(rng, source, name, module, model))
        if model.kind == "class":
            for method in rng.sample(source.methods, rng.choice((0, 1, 2, 4, 6))):
                own = f"{name}.{_unused(rng, source.words, taken, method.kind)}"
                found.append(_entry(rng, source, own, module, method))
    return sorted(found)


class _Source(NamedTuple):
    """What they are made from; `models` are functions and classes whose descriptions they get."""

    words: Sequence[str]
    parameters: Sequence[str]
    values: Sequence[str]
    modules: Sequence[str]
    models: Sequence[Entry]
    methods: Sequence[Entry]


def _source(own: Sequence[Entry]) -> _Source:
    return _Source(
        words=sorted({w.lower() for e in own for w in _WORDS.findall(_last(e.name)) if len(w) > 1}),
        parameters=sorted({parameter for entry in own for parameter in entry.defaults}),
        values=[value for entry in own for value in entry.defaults.values()],
        modules=sorted({entry.module for entry in own}),
        models=[entry for entry in own if entry.kind != "method"],
        methods=[entry for entry in own if entry.kind == "method"],
    )


def _entry(rng: random.Random, source: _Source, name: str, module: str, model: Entry) -> Entry:
    """An entry of this name whose description is that of `model`, below a sentence of its own."""
    plain = rng.sample(source.words, rng.randrange(3))
    values = {
        parameter: rng.choice(source.values) if rng.random() < 0.6 else _value(rng, source.words)
        for parameter in rng.sample(source.parameters, rng.randrange(6))
        if parameter not in plain
    }
    arguments = ", ".join([*plain, *(f"{parameter}={value}" for parameter, value in values.items())])
    # One parameter is asked about, of few methods: tasks are about as mixed as the real ones, and most are short.
    asked = rng.sample(sorted(values), 1) if values and (model.kind != "method" or rng.random() < 0.2) else []
    doc = f"{' '.join(rng.choices(source.words, k=rng.randint(5, 12))).capitalize()}.\n\n"
    if module.startswith("numpy"):
        doc += f".. versionadded:: {rng.choice(_VERSIONS)}\n\n"
    doc += re.sub(r"^ *\.\. versionadded::.*$", "", model.doc, flags=re.MULTILINE)
    return Entry(name, module, model.kind, f"{name}({arguments})", {each: values[each] for each in asked}, doc)


def _unused(rng: random.Random, words: Sequence[str], taken: set[str], kind: str) -> str:
    """The last part of a name that nothing has yet."""
    made = next(short for short in _shorts(rng, words, kind) if short not in taken)
    taken.add(made)
    return made


def _shorts(rng: random.Random, words: Sequence[str], kind: str) -> Iterator[str]:
    """Last parts of names, as one writes them: CamelCase, snake_case or run together."""
    while True:
        parts = rng.sample(words, rng.choice((1, 2) if kind == "method" else (1, 2, 2, 3)))
        if kind == "class":
            yield "".join(part.capitalize() for part in parts)
        else:
            yield ("_" if rng.random() < 0.6 else "").join(parts)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _value(rng: random.Random, words: Sequence[str]) -> str:
    number = rng.choice((rng.randrange(10), rng.randrange(1000), rng.randrange(100) / 10))
    return rng.choice((repr(number), repr(rng.choice(words))))
