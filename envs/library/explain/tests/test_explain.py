import json
from dataclasses import replace
from pathlib import Path

import pytest

from envs import ConfigError, Message, Rubric, ScriptedClient, evaluate, judge, load_environment, validate

HERE = Path(__file__).parent.parent


def test_it_is_fit_for_use() -> None:
    assert [check for check in validate(HERE, tasks=8) if check.passed is not True] == []


async def test_the_stand_in_marks_words_in_common() -> None:
    environment = load_environment(HERE)
    task = next(t for t in environment.tasks if t.id == "math.atan")
    assert task.answer == "Return the arc tangent (measured in radians) of x."
    answers = {str(task.answer): 1.0, "Arc tangent": 4 / 11, "Peace.": 0.0}
    for answer, faithful in answers.items():
        result = await evaluate(environment, ScriptedClient([answer]), tasks=[task])
        (record,) = result.trajectories
        assert record.rewards == {"faithful": pytest.approx(faithful), "brief": 1.0}
        assert record.reward == pytest.approx(0.8 * faithful + 0.2) and record.metrics == {"judge_tokens": 0.0}


async def test_a_scripted_judge_reads_question_reference_and_answer() -> None:
    environment = load_environment(HERE)
    seen: list[list[Message]] = []

    def says(messages: list[Message]) -> str:
        seen.append(messages)
        return json.dumps({"reasoning": "", "faithful": 1, "brief": 0})

    rubric = Rubric({judge(ScriptedClient(says), HERE / "explain" / "criteria.yaml"): 0.8})
    result = await evaluate(replace(environment, rubric=rubric), ScriptedClient(lambda messages: "Hm."), tasks=1)
    assert result.interval().mean == pytest.approx(0.8)
    assert "- brief (0 to 1): The answer is a single sentence" in (seen[0][0]["content"] or "")
    assert "Hm." in (seen[0][1]["content"] or "")


def test_a_judge_has_a_server_and_a_name() -> None:
    with pytest.raises(ConfigError, match="expected both, or neither"):
        load_environment(HERE, judge_url="http://localhost:1/v1")
    with pytest.raises(ConfigError, match="needs a judge that can read"):
        load_environment(HERE, criteria="mine.yaml")
