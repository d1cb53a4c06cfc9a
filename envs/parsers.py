"""Getting the answer out of what a model wrote, and reward functions made of that.

A parser is a function from the text of a completion to the answer it found, or None. What a parser does not find is the
model's mistake: it scores 0.

    Rubric({matches(xml_tag("answer")): 1.0, well_formed(xml_tag("answer")): 0.0})
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from envs.errors import ConfigError
from envs.json_schema import check_schema, misfit

T = TypeVar("T")
Parser = Callable[[str], T | None]


def exact() -> Parser[str]:
    """The whole text without the white space around it; None if that leaves nothing."""
    return lambda text: text.strip() or None


def regex(pattern: str, *, last: bool = True) -> Parser[str]:
    """The first group of the pattern (all of it, if it has none) where it matches last, or first.

    Raises:
        ConfigError: if the pattern is no regular expression.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"regex({pattern!r}) is no regular expression: {error}") from None

    def parse(text: str) -> str | None:
        found = [match.group(1 if compiled.groups else 0) for match in compiled.finditer(text)]
        return None if not found else found[-1 if last else 0]

    return parse


def xml_tag(name: str) -> Parser[str]:
    """What stands between the last `<name>` and its `</name>`, without the white space around it.

    A tag that is opened again before it is closed begins anew: models quote the format before they use it.
    """
    opening, closing = f"<{name}>", f"</{name}>"

    def parse(text: str) -> str | None:
        end = text.rfind(closing)
        start = text.rfind(opening, 0, end) if end >= 0 else -1
        return text[start + len(opening) : end].strip() if start >= 0 else None

    return parse


def boxed() -> Parser[str]:
    r"""What the last `\boxed{…}` holds; braces inside it are matched."""

    def parse(text: str) -> str | None:
        start = text.rfind(r"\boxed{")
        depth = 0
        for at in range(start + len(r"\boxed"), len(text)) if start >= 0 else ():
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[start + len(r"\boxed{") : at].strip()
        return None

    return parse


def code_block(language: str = "python") -> Parser[str]:
    """The last fenced block that names the language, or no language; the fence does not count."""
    pattern = re.compile(r"^```([\w+-]*)[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)

    def parse(text: str) -> str | None:
        blocks = [code for named, code in pattern.findall(text) if named.lower() in ("", language)]
        return blocks[-1] if blocks else None

    return parse


def json_value(schema: Mapping[str, Any] | None = None) -> Parser[Any]:
    """The last JSON object or array in the text that fits the schema (any, without one).

    Args:
        schema: JSON Schema, as far as `envs.json_schema` knows it.

    Raises:
        ConfigError: for a keyword of the schema that is not known, rather than not checking it.
    """
    if schema is not None:
        check_schema(schema)

    def parse(text: str) -> Any:
        fitting = (value for value in json_values(text) if schema is None or misfit(value, schema) is None)
        return next(fitting, None)

    return parse


def json_values(text: str) -> list[Any]:
    """The JSON objects and arrays that a text holds, one inside another left out, the last one first."""
    decoder, found, at = json.JSONDecoder(), [], 0
    starts = re.compile(r"[{\[]")
    misses = 0
    # A text of brackets alone would cost its length squared: after so many that begin nothing, it holds no answer.
    while (start := starts.search(text, at)) is not None and misses < _MOST_MISSES:
        try:
            value, at = decoder.raw_decode(text, start.start())
            found.append(value)
        except (json.JSONDecodeError, RecursionError):
            at = start.start() + 1
            misses += 1
    return found[::-1]


_MOST_MISSES = 1000


def matches(parser: Parser[Any], *, name: str = "correct", fold_case: bool = False) -> Callable[..., float]:
    """A reward function: 1 if what the parser finds is the task's answer, else 0.

    Texts are compared without the white space around them. An answer that is no text is compared with what was found,
    read as JSON if it is a text (so that "4" is 4 and "4.0" is 4, too).

    Args:
        parser: finds the answer.
        name: of the reward function.
        fold_case: upper and lower case are the same.
    """

    def reward(completion: str, answer: Any) -> float:
        found = parser(completion)
        return float(found is not None and _same(found, answer, fold_case))

    reward.__name__ = name
    return reward


def well_formed(parser: Parser[Any], *, name: str = "well_formed") -> Callable[..., float]:
    """A reward function: 1 if the parser finds anything, else 0."""

    def reward(completion: str) -> float:
        return float(parser(completion) is not None)

    reward.__name__ = name
    return reward


def _same(found: Any, answer: Any, fold_case: bool) -> bool:
    if isinstance(found, str) and isinstance(answer, str):
        a, b = found.strip(), answer.strip()
        return a.casefold() == b.casefold() if fold_case else a == b
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            return False
    # True == 1 in Python, and is another answer.
    return bool(found == answer) and isinstance(found, bool) == isinstance(answer, bool)
