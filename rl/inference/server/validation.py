"""What a request may say, checked field by field: a refusal names the field, what was found and what was expected."""

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

_LONGEST_SHOWN = 60
_LARGEST = 1e38
"""What float32 holds. JSON may say 1e999, and whole numbers of any length."""


class Refused(Exception):
    """A request that cannot be answered as it is.

    Attributes:
        status: the HTTP status.
        field: the dotted name of the field that does not fit, where it is one.
        code: OpenAI's word for the error, where it has one.
        retry_after: seconds after which it may be tried again.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        field: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.field, self.code, self.retry_after = status, field, code, retry_after


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that a body holds.

    Raises:
        Refused: when it holds something else, or numbers that JSON does not have.
    """

    def no_number(text: str) -> NoReturn:
        raise Refused(f"the body is no JSON: {text} is no number that JSON has")

    try:
        body = json.loads(raw, parse_constant=no_number)
    except UnicodeDecodeError as error:
        raise Refused(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:  # also a number of more digits than Python reads
        raise Refused(f"the body is no JSON: {error}; expected one object") from None
    except RecursionError:
        raise Refused("the body is nested too deeply") from None
    if not isinstance(body, dict):
        raise Refused(f"the body is {shown(body)}; expected one JSON object")
    return body


class Fields:
    """The fields of one JSON object, each taken once. `null` is the same as absent.

    Args:
        data: the object.
        where: the dotted name of the object within the request; empty for the request itself.
    """

    def __init__(self, data: Mapping[str, Any], where: str = "") -> None:
        self._data = {name: value for name, value in data.items() if value is not None}
        self._where = where
        self._taken: set[str] = set()

    def name(self, field: str) -> str:
        """The dotted name of a field."""
        return f"{self._where}.{field}" if self._where else field

    def take(self, field: str, default: Any = None) -> Any:
        """The value as it is."""
        self._taken.add(field)
        return self._data.get(field, default)

    def text(self, field: str, default: Any = None) -> Any:
        return self._typed(field, default, str, "a text")

    def flag(self, field: str, default: bool = False) -> bool:
        found: bool = self._typed(field, default, bool, "true or false")
        return found

    def integer(self, field: str, default: Any = None, *, low: int, high: int | None = None) -> Any:
        """A whole number in `[low, high]`; 3.0 is one too."""
        value = self.take(field)
        if value is None:
            return default
        wanted = f"a whole number of at least {low}" if high is None else f"a whole number in {low} … {high}"
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or value < low or (high is not None and value > high):
            raise self.unfit(field, value, wanted)
        return value

    def number(self, field: str, default: float, *, low: float, high: float = _LARGEST, above: bool = False) -> float:
        """A number in `[low, high]`, or in `(low, high]` with `above`."""
        value = self.take(field)
        if value is None:
            return default
        wanted = f"a number {'above' if above else 'of at least'} {low:g}"
        wanted += "" if high == _LARGEST else f" and at most {high:g}"
        if type(value) not in (int, float) or not low <= value <= high or (above and value == low):
            raise self.unfit(field, value, wanted)
        return float(value)

    def only(self, field: str, allowed: Collection[Any], reason: str = "") -> Any:
        """A field that this server does not act on: it may only say what is the case anyway."""
        value = self.take(field)
        if value is None or any(value == a and type(value) is type(a) for a in allowed):
            return value
        if type(value) in (int, float) and any(value == a and type(a) in (int, float) for a in allowed):
            return value
        wanted = " or ".join(shown(a) for a in allowed) or "null"
        raise self.unfit(field, value, wanted + (f": {reason}" if reason else ""))

    def ignore(self, *fields: str) -> None:
        """Fields that may say anything."""
        self._taken.update(fields)

    def unfit(self, field: str, found: Any, expected: str) -> Refused:
        """The refusal of a field's value."""
        name = self.name(field)
        return Refused(f"{name} is {shown(found)}; expected {expected}", field=name)

    def done(self) -> None:
        """Refuses what was not taken.

        Raises:
            Refused: naming the first unknown field, and the known one it may have meant.
        """
        unknown = [name for name in self._data if name not in self._taken]
        if unknown:
            close = difflib.get_close_matches(unknown[0], sorted(self._taken), n=1, cutoff=0.6)
            hint = f"; did you mean {self.name(close[0])}?" if close else f"; known: {', '.join(sorted(self._taken))}"
            raise Refused(f"unknown field {self.name(unknown[0])}{hint}", field=self.name(unknown[0]))

    def _typed(self, field: str, default: Any, kind: type, wanted: str) -> Any:
        value = self.take(field)
        if value is None:
            return default
        if type(value) is not kind:
            raise self.unfit(field, value, wanted)
        return value


def token_ids(value: Any, field: str, vocab_size: int) -> list[int]:
    """A non-empty list of token ids.

    Raises:
        Refused: naming the entry that is none.
    """
    if type(value) is not list or not value:
        raise Refused(f"{field} is {shown(value)}; expected a list of at least one token id", field=field)
    for i, token in enumerate(value):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise Refused(
                f"{field}[{i}] is {shown(token)}; expected a token id in 0 … {vocab_size - 1}", field=f"{field}[{i}]"
            )
    return value


def texts(value: Any, field: str) -> tuple[str, ...]:
    """A text, or a list of texts; None is none. An empty text is refused."""
    found = [value] if isinstance(value, str) else [] if value is None else value
    if type(found) is not list or not all(isinstance(text, str) and text for text in found):
        raise Refused(f"{field} is {shown(value)}; expected a text or a list of texts, none of them empty", field=field)
    return tuple(found)


def logit_bias(value: Any, field: str, vocab_size: int) -> dict[int, float]:
    """`{"token id": number}` as numbers."""
    if value is None:
        return {}
    wanted = f"an object from token ids (0 … {vocab_size - 1}) to numbers"
    if not isinstance(value, dict):
        raise Refused(f"{field} is {shown(value)}; expected {wanted}", field=field)
    bias: dict[int, float] = {}
    for key, amount in value.items():
        known = key.isascii() and key.isdigit() and int(key) < vocab_size
        if not known or type(amount) not in (int, float) or not -_LARGEST <= amount <= _LARGEST:
            raise Refused(f"{field} has {shown(key)}: {shown(amount)}; expected {wanted}", field=field)
        bias[int(key)] = float(amount)
    return bias


def shown(value: Any) -> str:
    """A value as it stood in the request, cut short."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "nested too deeply"
    kind = f" ({len(value)} entries)" if isinstance(value, Sequence) and not isinstance(value, str) else ""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…{kind}"
