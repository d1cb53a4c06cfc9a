"""The server and the scores of `catalogue`."""

import json
import re

from envs import ScriptedClient, Task, load_environment, run_task
from envs.clients.scripted import tool_call

ENVIRONMENT = load_environment("catalogue")


def first() -> Task:
    return ENVIRONMENT.tasks.split("eval")[0]


async def test_search_and_look_lead_to_the_year() -> None:
    task = first()
    search = tool_call("search", json.dumps({"words": task.info["title"].upper()}))
    look = tool_call("look", json.dumps({"number": task.info["record"]}))
    record = await run_task(ENVIRONMENT, task, ScriptedClient([search, look, f"It was {task.answer}."]))
    assert (record.reward, record.metrics) == (1.0, {"lookups": 1.0})
    found, shown = (str(m["content"]) for m in record.messages if m["role"] == "tool")
    assert str(task.info["record"]) in re.findall(r"\d+", found) and str(task.answer) in shown


async def test_a_guess_and_all_years_are_worth_nothing() -> None:
    task = first()
    for said in (f"{task.answer} or 1899", "I do not know", ""):
        assert (await run_task(ENVIRONMENT, task, ScriptedClient([said]))).reward == 0.0


async def test_a_record_that_is_not_there_is_the_models_to_mend() -> None:
    record = await run_task(ENVIRONMENT, first(), ScriptedClient([tool_call("look", '{"number": 400}'), "?"]))
    assert "there is no record 400; they are numbered from 0 to 399" in str(record.messages[-2]["content"])
    assert record.failure is None and record.reward == 0.0


def test_a_title_alone_does_not_tell() -> None:
    titles = [task.info["title"] for task in ENVIRONMENT.tasks]
    assert len(set(titles)) < len(titles) / 2
