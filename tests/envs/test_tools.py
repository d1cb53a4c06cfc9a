import asyncio
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Annotated, Any, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import ConfigError, InfrastructureError, make_tool
from envs.annotations import fit
from envs.tool_schema import json_schema, parse_docstring
from envs.tools import call_tool, parse_arguments, to_text


class Unit(Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


@dataclass
class Place:
    city: str
    country: str = "FR"


async def weather(
    place: Place, days: list[int], unit: Unit = Unit.CELSIUS, mode: Literal["short", "long"] | None = None
) -> dict[str, Any]:
    """Forecasts the weather
    of a place.

    Slow for far away places.

    Args:
        place: where; its country
            is a code of two letters.
        days (list): which days from now.
        unit: of the temperatures.

    Returns:
        what the model does not need to know.
    """
    return {"city": place.city, "days": days, "unit": unit.value, "mode": mode}


def test_the_schema_says_what_signature_and_docstring_say() -> None:
    assert make_tool(weather).schema == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Forecasts the weather of a place.\n\nSlow for far away places.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {
                        "type": "object",
                        "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
                        "required": ["city"],
                        "additionalProperties": False,
                        "description": "where; its country is a code of two letters.",
                    },
                    "days": {
                        "type": "array",
                        "items": {"type": "integer"},
                        "description": "which days from now.",
                    },
                    "unit": {"enum": ["C", "F"], "description": "of the temperatures.", "default": "C"},
                    "mode": {"anyOf": [{"enum": ["short", "long"]}, {"type": "null"}], "default": None},
                },
                "required": ["place", "days"],
                "additionalProperties": False,
            },
        },
    }


class Options(TypedDict):
    depth: int


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, {"type": "string"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (Any, {}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (dict, {"type": "object"}),
        (list, {"type": "array"}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (
            tuple[int, str],
            {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        ),
        (Annotated[int, "how many"], {"type": "integer", "description": "how many"}),
        (
            Options,
            {
                "type": "object",
                "properties": {"depth": {"type": "integer"}},
                "required": ["depth"],
                "additionalProperties": False,
            },
        ),
    ],
)
def test_types_as_json_schema(annotation: Any, schema: dict[str, Any]) -> None:
    assert json_schema(annotation, "f") == schema


scalars = [(int, st.integers()), (str, st.text()), (bool, st.booleans()), (type(None), st.none())]
typed = st.recursive(
    st.sampled_from(scalars),
    lambda inner: (
        inner.map(lambda of: (list[of[0]], st.lists(of[1], max_size=3)))  # type: ignore[name-defined]
        | inner.map(lambda of: (dict[str, of[0]], st.dictionaries(st.text(), of[1], max_size=3)))  # type: ignore[name-defined]
    ),
    max_leaves=3,
)


@given(st.data())
def test_a_value_of_the_type_fits_its_schema_and_its_annotation(data: st.DataObject) -> None:
    annotation, values = data.draw(typed)
    value = data.draw(values)
    assert _valid(value, json_schema(annotation, "f"))
    assert fit(json.loads(json.dumps(value)), annotation, "x") == value


def _valid(value: Any, schema: dict[str, Any]) -> bool:
    """As much of JSON schema as the property needs."""
    kinds = {"integer": int, "string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}
    if type(value) is not kinds[schema["type"]]:
        return False
    inner = schema.get("items") or schema.get("additionalProperties")
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(_valid(item, inner) for item in items)


def untyped(a) -> None:  # type: ignore[no-untyped-def]
    """Has no types."""


def undocumented(a: int) -> None: ...


def strange(a: complex) -> None:
    """Takes what JSON has not."""


def keyed(a: dict[int, str]) -> None:
    """Takes keys that JSON has not."""


def outdated(a: int) -> None:
    """Was changed.

    Args:
        b: is gone.
    """


def starred(*a: int) -> None:
    """Takes any number."""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (untyped, "tool 'untyped': annotate the parameter 'a' with its type"),
        (undocumented, "tool 'undocumented' has no docstring; say in it what the tool does"),
        (strange, "tool 'strange': JSON has nothing like <class 'complex'>"),
        (keyed, "tool 'keyed': the keys of a JSON object are str; found dict[int, str]"),
        (outdated, "tool 'outdated': its docstring describes 'b', which is no parameter"),
        (starred, "tool 'starred': '*a: int' has no name that a model could give"),
        (lambda: None, "<function <lambda> at"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_refused(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_tool(function)
    assert str(caught.value).startswith(message)


async def call(function: Callable[..., Any], arguments: str, **limits: Any) -> str:
    tool = make_tool(function, **limits)
    return await call_tool({tool.name: tool}, {"name": tool.name, "arguments": arguments}, SimpleNamespace(user="u"))


async def test_arguments_arrive_as_python_values() -> None:
    answer = await call(weather, '{"place": {"city": "Nice"}, "days": [1, 2], "unit": "F"}')
    assert json.loads(answer) == {"city": "Nice", "days": [1, 2], "unit": "F", "mode": None}


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("{city:", "Error: the arguments of weather are not valid JSON (Expecting property name"),
        ("[1]", "Error: the arguments of weather must be a JSON object with place, days, unit, mode; found [1]."),
        ("", "Error: weather needs the argument 'place'."),
        ('{"town": 1}', "Error: weather has no argument 'town'; it takes place, days, unit, mode."),
        (
            '{"place": {"city": "Nice"}, "days": "1"}',
            'Error: weather: days is "1", expected list of int.',
        ),
        (
            '{"place": {"city": "Nice"}, "days": [1, "2"]}',
            'Error: weather: days[1] is "2", expected int.',
        ),
        (
            '{"place": {"city": "Nice"}, "days": [], "unit": "K"}',
            "Error: weather: unit is \"K\", expected one of 'C', 'F'.",
        ),
    ],
)
async def test_a_wrong_call_is_answered_and_never_raises(arguments: str, answer: str) -> None:
    assert (await call(weather, arguments)).startswith(answer)


async def test_a_tool_that_raises_is_answered() -> None:
    def divide(a: int) -> float:
        """Divides one by a number."""
        return 1 / a

    assert await call(divide, '{"a": 0}') == "Error: divide failed with ZeroDivisionError: division by zero"
    assert await call(divide, '{"a": 2}') == "0.5"


async def test_a_tool_that_takes_too_long_is_stopped() -> None:
    async def sleep(seconds: float) -> None:
        """Sleeps."""
        await asyncio.sleep(seconds)

    async def give_up() -> None:
        """Raises a time-out of its own."""
        raise TimeoutError("the page did not load")

    started = time.perf_counter()
    assert await call(sleep, '{"seconds": 60}', timeout=0.05) == "Error: sleep took longer than 0.05 s and was stopped."
    assert time.perf_counter() - started < 30
    assert await call(give_up, "{}") == "Error: give_up failed with TimeoutError: the page did not load"


async def test_sync_tools_do_not_hold_up_the_others() -> None:
    def block() -> str:
        """Blocks for a while."""
        time.sleep(0.2)
        return "done"

    waiting = asyncio.create_task(call(block, "{}"))
    ticks = 0
    while not waiting.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert waiting.result() == "done"
    assert ticks >= 3


async def test_infrastructure_errors_pass() -> None:
    def search() -> None:
        """Searches."""
        raise InfrastructureError("down")

    with pytest.raises(InfrastructureError, match="down"):
        await call(search, "{}")


async def test_state_is_given_by_the_rollout_and_not_by_the_model() -> None:
    def whoami(greeting: str, state: SimpleNamespace) -> str:
        """Says who you are."""
        return f"{greeting} {state.user}"

    assert list(make_tool(whoami).parameters["properties"]) == ["greeting"]
    assert await call(whoami, '{"greeting": "I am"}') == "I am u"
    assert await call(whoami, '{"greeting": "a", "state": {}}') == (
        "Error: whoami has no argument 'state'; it takes greeting."
    )


async def test_long_results_are_cut_with_a_notice() -> None:
    def shout() -> str:
        """Shouts."""
        return "a" * 1000

    assert await call(shout, "{}", max_chars=10) == "aaaaaaaaaa\n[cut: 10 of 1000 characters shown]"
    assert to_text("é", 1) == "é"
    assert to_text(["é", None], 99) == '["é", null]'
    assert to_text(Unit, 99) == "\"<enum 'Unit'>\""


def test_no_arguments_may_be_an_empty_text() -> None:
    def now() -> str:
        """Tells the time."""
        return "now"

    assert parse_arguments(make_tool(now), "") == {}
    assert parse_arguments(make_tool(now), "{}") == {}


def test_docstrings_are_read_the_google_way() -> None:
    text = inspect.cleandoc(
        """Does it.

        Args:
            a: first: with a colon.
            b (int, optional): second,
                goes on.

        Raises:
            ValueError: never.
        """
    )
    assert parse_docstring(text) == ("Does it.", {"a": "first: with a colon.", "b": "second, goes on."})
    assert parse_docstring("") == ("", {})
    assert parse_docstring("Only this.\n\nReturns:\n    x") == ("Only this.", {})
