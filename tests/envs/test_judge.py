import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envs import (
    Completion,
    ConfigError,
    InfrastructureError,
    Price,
    Rubric,
    ScriptedClient,
    Task,
    Trajectory,
    Turn,
    judge,
)
from envs.clients.scripted import tool_call
from envs.judging import read_criteria, response_format

TASK = Task.ask("a", "Who wrote Faust?", "Goethe")
CRITERIA = """\
accuracy: The answer names the author.
style:
  text: The answer is one polite sentence.
  weight: 0.5
  scale: [1, 5]
"""


def verdict(**marks: float) -> str:
    return json.dumps({"reasoning": "Hm.", **marks})


def said(text: str, usage: dict[str, int] | None = None) -> Completion:
    return Completion({"role": "assistant", "content": text}, "stop", usage=usage or {})


async def judged(reward: Any, answer: str = "Goethe did.", weight: float = 1.0, retries: int = 0) -> Trajectory:
    record = Trajectory(TASK, turns=[Turn(TASK.prompt, said(answer), True)], stop="completed")
    await Rubric({reward: weight}).score(record, SimpleNamespace(), retries=retries)
    return record


async def test_a_criteria_file_makes_scores_with_weights(tmp_path: Path) -> None:
    (tmp_path / "criteria.yaml").write_text(CRITERIA)
    client = ScriptedClient([said(verdict(accuracy=1, style=3), {"prompt_tokens": 900, "completion_tokens": 100})])
    reward = judge(client, tmp_path / "criteria.yaml", price=Price(prompt=1.0, completion=11.0))
    record = await judged(reward, weight=2.0)
    assert record.rewards == {"accuracy": 1.0, "style": 0.5} and record.reward == 2.5
    assert record.metrics == {"judge_tokens": 1000.0, "judge_cost": 0.002}
    system, user = (m["content"] or "" for m in client.requests[0].messages)
    assert "- style (1 to 5): The answer is one polite sentence." in system
    assert "Who wrote Faust?" in user and "\nGoethe\n" in user and "Goethe did." in user


async def test_the_fence_is_one_the_answer_cannot_contain() -> None:
    client = ScriptedClient(lambda messages: verdict(judge=1))
    reward = judge(client, "Right?")
    fences = []
    for answer in ("Goethe", "Schiller"):
        await judged(reward, answer)
        fences.append((client.requests[-1].messages[1]["content"] or "").splitlines()[0].split()[-1])
    assert fences[0] != fences[1] and all(len(fence) == 16 for fence in fences)


async def test_a_verdict_is_asked_for_again_and_what_it_took_adds_up() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    client = ScriptedClient([said("Good!", usage), said(verdict(judge=7), usage), said(verdict(judge=1), usage)])
    record = await judged(judge(client, "Right?"))
    assert record.reward == 1.0 and record.metrics == {"judge_tokens": 33.0}
    second, third = ([m["content"] or "" for m in request.messages] for request in client.requests[1:])
    assert second[2] == "Good!" and "found no JSON in 'Good!'" in second[3]
    assert len(third) == 4 and "the verdict.judge is 7; expected maximum 1" in third[3]


@pytest.mark.parametrize("answer", ["", "{}", "null", '{"reasoning": "", "judge": "1"}', '{"judge": NaN}', "{" * 5000])
async def test_a_judge_without_a_valid_verdict_is_an_error_and_never_a_zero(answer: str) -> None:
    client = ScriptedClient(lambda messages: answer)
    record = await judged(judge(client, "Right?"), retries=1)
    assert record.reward is None and record.failure is not None and record.rewards == {}
    assert record.failure.kind == "infrastructure" and "gave no valid verdict in 3 attempts" in record.failure.message
    assert len(client.requests) == 6  # three attempts, twice


async def test_a_judge_that_is_away_is_tried_again_and_then_an_error() -> None:
    def away(messages: Any) -> str:
        raise InfrastructureError("no route")

    record = await judged(judge(ScriptedClient(away), "Right?"), retries=2)
    assert record.reward is None and record.failure is not None
    assert (record.failure.kind, record.failure.message) == ("infrastructure", "no route")


async def test_what_was_judged_once_is_not_paid_for_again(tmp_path: Path) -> None:
    client = ScriptedClient(lambda messages: said(verdict(judge=0.25), {"prompt_tokens": 5, "completion_tokens": 5}))
    cache = tmp_path / "cache" / "judge.sqlite"
    first = await judged(judge(client, "Right?", cache=cache))
    second = await judged(judge(client, "Right?", cache=cache))
    assert (first.reward, second.reward) == (0.25, 0.25)
    assert (first.metrics, second.metrics) == ({"judge_tokens": 10.0}, {"judge_tokens": 0.0})
    await judged(judge(client, "Right?", cache=cache), "Another answer")
    await judged(judge(client, "Wrong?", cache=cache))
    assert len(client.requests) == 3


async def test_a_verdict_may_come_as_a_tool_call() -> None:
    client = ScriptedClient([tool_call("verdict", verdict(judge=0.5))])
    assert (await judged(judge(client, "Right?", use_tool=True))).reward == 0.5
    assert client.requests[0].tools[0]["function"]["name"] == "verdict"


async def test_what_is_shown_can_be_chosen() -> None:
    client = ScriptedClient([verdict(judge=1)])
    await judged(judge(client, "Right?", show=lambda trajectory: f"{len(trajectory.turns)} turns"))
    assert "\n1 turns\n" in (client.requests[0].messages[1]["content"] or "")


def test_a_server_can_be_held_to_the_schema() -> None:
    schema = response_format({"accuracy": "Right?"})["json_schema"]["schema"]
    assert schema["properties"]["accuracy"] == {"type": "number", "minimum": 0.0, "maximum": 1.0}
    assert schema["required"] == ["reasoning", "accuracy"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found None; expected a mapping like {accuracy: The answer is right.}"),
        ("a: 3", "'a' is 3; expected words"),
        ("a: {text: x, wieght: 2}", "unknown key of a criterion .*'wieght'; did you mean 'weight'"),
        ("a: {text: x, scale: [5, 1]}", r"'a' has the scale \[5, 1\]; expected the lowest and the highest mark"),
        ("a: [", "is no YAML"),
    ],
)
def test_criteria_that_cannot_be_read_name_their_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "criteria.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        read_criteria(path, "judge")
    assert "criteria.yaml" in str(raised.value)
