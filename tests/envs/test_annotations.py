from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict

import pytest

from envs.annotations import Misfit, describe, fit


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0
    tags: tuple[str, ...] = field(default_factory=tuple)


class Options(TypedDict):
    name: str
    depth: NotRequired[int]


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, int, 3),
        (3.0, int, 3),
        (3, float, 3.0),
        (True, bool, True),
        ("a", str, "a"),
        (None, None, None),
        (None, Optional[int], None),  # noqa: UP045 - the older spelling must work as well
        (2.0, int | float, 2.0),
        (2, float | int, 2),
        ("b", Literal["a", "b"], "b"),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, "a"], tuple[int, str], (1, "a")),
        ((1, 2), list[float], [1.0, 2.0]),
        ([1, 2], Sequence[int], [1, 2]),
        ([1, 1], set[int], {1}),
        ([1, 2], list, [1, 2]),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ({"a": 1}, Mapping[str, Any], {"a": 1}),
        ({"a": 1}, dict, {"a": 1}),
        ("red", Colour, Colour.RED),
        (Colour.BLUE, Colour, Colour.BLUE),
        ({"x": 1, "tags": ["a"]}, Point, Point(1.0, 0.0, ("a",))),
        (Point(1.0), Point, Point(1.0)),
        ({"name": "a"}, Options, {"name": "a"}),
        (5, Annotated[int, "how many"], 5),
        (print, Callable[..., None], print),
        (object, Any, object),
    ],
)
def test_what_fits_is_converted_without_loss(value: object, annotation: object, expected: object) -> None:
    fitted = fit(value, annotation, "x")
    assert fitted == expected
    assert type(fitted) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("3", int, "x: found '3' (str), expected int"),
        (3.5, int, "x: found 3.5 (float), expected int"),
        (True, int, "x: found True (bool), expected int"),
        (True, float, "x: found True (bool), expected float"),
        (1, bool, "x: found 1 (int), expected bool"),
        (1, str, "x: found 1 (int), expected str"),
        ("abc", float | None, "x: found 'abc' (str), expected float or None"),
        ("c", Literal["a", "b"], "x: found 'c' (str), expected one of 'a', 'b'"),
        (1, Literal[True], "x: found 1 (int), expected one of True"),
        ("ab", list[str], "x: found 'ab' (str), expected list of str"),
        ([1, "b"], list[int], "x[1]: found 'b' (str), expected int"),
        ([1], tuple[int, int], "x: found [1] (list), expected tuple of (int, int)"),
        ({"a": "b"}, dict[str, int], "x['a']: found 'b' (str), expected int"),
        ({1: 1}, dict[str, int], "key of x: found 1 (int), expected str"),
        ([], dict[str, int], "x: found [] (list), expected mapping from str to int"),
        ("green", Colour, "x: found 'green' (str), expected one of 'red', 'blue'"),
        ({"y": 1}, Point, "x: found {'y': 1} (dict), expected a field 'x'"),
        ({"x": "1"}, Point, "x.x: found '1' (str), expected float"),
        ({"x": 1, "z": 1}, Point, "x.z: found 1 (int), expected one of the fields x, y, tags"),
        ({"depth": 1}, Options, "x: found {'depth': 1} (dict), expected a field 'name'"),
        (3, Point, "x: found 3 (int), expected Point"),
        (3, Callable[..., None], "x: found 3 (int), expected"),
        (3, None, "x: found 3 (int), expected None"),
    ],
)
def test_what_does_not_fit_is_named(value: object, annotation: object, message: str) -> None:
    with pytest.raises(Misfit) as caught:
        fit(value, annotation, "x")
    assert str(caught.value).startswith(message)


def test_describe_is_for_people() -> None:
    assert describe(tuple[int, ...] | None) == "tuple of int or None"
    assert describe(Annotated[list[Literal[1, 2]], "…"]) == "list of one of 1, 2"
    assert describe(Mapping[str, Any]) == "mapping from str to Any"
