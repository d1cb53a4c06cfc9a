"""Problems of reasoning-gym with the Python that solves them: reads one JSON object, writes a list. Run as a script.

`{"kinds": {name: settings}, "seed": s, "count": n}` -> n times `{"kind", "question", "answer", "code"}`.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

SIZE = 500
"""Entries of one seed."""


def _printed(metadata: Mapping[str, Any]) -> str:
    return f"print({metadata['expression'].replace('/', '//')})"


def _decimal(metadata: Mapping[str, Any]) -> str:
    terms = re.sub(r"(\d+(?:\.\d+)?)", r"D('\1')", metadata["expression"])
    return f"from decimal import Decimal as D\nprint({terms})"


def _of_numbers(function: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda metadata: f"import math\nprint(math.{function}({', '.join(map(str, metadata['numbers']))}))"


def _primes(metadata: Mapping[str, Any]) -> str:
    first, last = max(2, metadata["start"]), metadata["end"]
    return f"print(sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range({first}, {last} + 1)))"


def _linear(metadata: Mapping[str, Any]) -> str:
    left, right = metadata["equation"].split(" = ")
    return f"f = lambda {metadata['variable']}: {left} - ({right})\nprint(-f(0) // (f(1) - f(0)))"


def _dice(metadata: Mapping[str, Any]) -> str:
    sides = re.findall(r"1d(\d+)", metadata["puzzle"]["dice_str"])
    rolls = ", ".join(f"range({n})" for n in sides)
    return (
        "from fractions import Fraction\nfrom itertools import product\n"
        f"rolls = [sum(r) + {len(sides)} for r in product({rolls})]\n"
        f"print(Fraction(sum(r >= {metadata['puzzle']['target']} for r in rolls), len(rolls)))"
    )


KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "basic_arithmetic": _printed,
    "chain_sum": _printed,
    "count_bits": lambda metadata: f"print(bin({metadata['number']}).count('1'))",
    "count_primes": _primes,
    "decimal_chain_sum": _decimal,
    "dice": _dice,
    "gcd": _of_numbers("gcd"),
    "lcm": _of_numbers("lcm"),
    "products": _printed,
    "simple_equations": _linear,
}
"""Datasets whose answers are numbers, and what computes one from an entry's metadata."""


def problems(kinds: Mapping[str, Mapping[str, Any]], seed: int, count: int) -> list[dict[str, str]]:
    from reasoning_gym import create_dataset

    found, made = [], {}
    for n in range(count):
        name = list(kinds)[n % len(kinds)]
        part, index = divmod(n // len(kinds), SIZE)
        if index == 0:
            made[name] = create_dataset(name, seed=seed + part * SIZE, size=SIZE, **kinds[name])
        entry = made[name][index]
        code = KINDS[name](entry["metadata"])
        found.append({"kind": name, "question": entry["question"], "answer": entry["answer"], "code": code})
    return found


if __name__ == "__main__":
    print("\n" + json.dumps(problems(**json.load(sys.stdin))))
