from typing import Any

import pytest

from envs import ConfigError, boxed, code_block, exact, json_value, matches, regex, well_formed, xml_tag
from envs.json_schema import check_schema, misfit
from envs.parsers import json_values


@pytest.mark.parametrize(
    ("parser", "text", "found"),
    [
        (exact(), "  4\n", "4"),
        (exact(), " \n", None),
        (regex(r"answer: (\d+)"), "answer: 3, no, answer: 4", "4"),
        (regex(r"answer: (\d+)", last=False), "answer: 3, no, answer: 4", "3"),
        (regex(r"\d+"), "7 of 9", "9"),
        (regex(r"answer: (\d+)"), "four", None),
        (xml_tag("answer"), "use <answer>…</answer>: <answer> 4 </answer>", "4"),
        (xml_tag("answer"), "<answer>3 <answer>4</answer>", "4"),
        (xml_tag("answer"), "<answer>4", None),
        (xml_tag("answer"), "</answer>", None),
        (boxed(), r"\boxed{1} and \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (boxed(), r"\boxed{\frac{1}{2}", None),
        (code_block(), "```python\nx = 1\n```\nthen\n```\nx = 2\n```\n```json\n{}\n```", "x = 2\n"),
        (code_block(), "x = 1", None),
        (json_value(), 'first {"a": 1}, then {"a": {"b": [2]}}.', {"a": {"b": [2]}}),
        (json_value(), "{not json} [1, 2]", [1, 2]),
        (json_value({"type": "object", "required": ["a"]}), '{"a": 1} {"b": 2}', {"a": 1}),
        (json_value({"type": "object", "required": ["a"]}), '{"b": 2}', None),
    ],
)
def test_what_a_parser_finds(parser: Any, text: str, found: Any) -> None:
    assert parser(text) == found


def test_a_megabyte_of_brackets_holds_no_answer() -> None:
    assert json_values("{[" * 500_000) == []
    assert xml_tag("a")("<a>" * 300_000) is None
    assert boxed()(r"\boxed{" * 100_000) is None


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [("<a>4</a>", "4", 1.0), ("<a>4.0</a>", 4, 1.0), ("<a>true</a>", 1, 0.0), ("<a>x</a>", 4, 0.0), ("4", "4", 0.0)],
)
def test_a_parser_becomes_a_reward_function(completion: str, answer: Any, score: float) -> None:
    reward = matches(xml_tag("a"))
    assert (reward.__name__, reward(completion, answer)) == ("correct", score)


def test_case_may_not_count_and_the_format_is_a_score_of_its_own() -> None:
    assert matches(exact(), fold_case=True)("PARIS", "Paris") == 1.0
    assert matches(exact())("PARIS", "Paris") == 0.0
    assert (well_formed(boxed())(r"\boxed{1}"), well_formed(boxed())("1")) == (1.0, 0.0)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "mail": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "@"}]},
    },
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"name": "A", "age": 3.0, "tags": ["a"], "mail": None}, None),
        ({"age": 3}, "it has no 'name'"),
        ({"name": ""}, "it.name is ''; expected minLength 1"),
        ({"name": "A", "age": True}, "it.age is True; expected integer"),
        ({"name": "A", "age": -1}, "it.age is -1; expected minimum 0"),
        ({"name": "A", "tags": ["a", "c"]}, "it.tags[1] is 'c'; expected one of ['a', 'b']"),
        ({"name": "A", "mail": "x"}, "it.mail is 'x', which fits none of the 2 options"),
        ({"name": "A", "x": 1}, "it has 'x', which is not asked for"),
        ([], "it is []; expected object"),
    ],
)
def test_what_does_not_fit_a_schema(value: Any, problem: str | None) -> None:
    assert misfit(value, PERSON) == problem


def test_what_is_not_looked_at_is_refused() -> None:
    check_schema(PERSON)
    with pytest.raises(ConfigError, match="unknown keyword of a JSON schema 'oneOf'; did you mean 'anyOf'"):
        json_value({"properties": {"a": {"oneOf": []}}})
    with pytest.raises(ConfigError, match="unknown type of a JSON schema 'text'"):
        json_value({"type": "text"})
    with pytest.raises(ConfigError, match="is no regular expression"):
        regex("(")
