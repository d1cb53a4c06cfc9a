"""Questions, sandbox and scores of `number_file`."""

import pytest

from envs import ConfigError, ScriptedClient, load_environment, run_task
from envs.clients.scripted import tool_call

ENVIRONMENT = load_environment("number_file", count=50, eval_tasks=8)


async def test_variables_stay_and_the_file_is_there() -> None:
    task = ENVIRONMENT.tasks.split("eval")[0]
    read = tool_call("python", '{"code": "import glob, json; numbers = json.load(open(glob.glob(\\"*.json\\")[0]))"}')
    client = ScriptedClient([read, tool_call("python", '{"code": "len(numbers)"}'), f"{task.answer:,}"])
    try:
        record = await run_task(ENVIRONMENT, task, client)
    except ConfigError as error:
        if "bubblewrap" not in str(error):
            raise
        pytest.skip(f"NOT TESTED: {error}")
    assert record.failure is None, record.failure
    assert [m["content"] for m in record.messages if m["role"] == "tool"] == ["[no output]", "50\n"]
    assert (record.reward, record.metrics) == (1.0, {"calls": 2.0})


@pytest.mark.parametrize("said", ["", "no idea", "1 or 2 or 3", "-7"])
async def test_anything_but_the_number_is_worth_nothing(said: str) -> None:
    task = ENVIRONMENT.tasks.split("eval")[1]
    try:
        record = await run_task(ENVIRONMENT, task, ScriptedClient([said]))
    except ConfigError as error:
        if "bubblewrap" not in str(error):
            raise
        pytest.skip(f"NOT TESTED: {error}")
    assert record.reward == 0.0


def test_every_kind_of_question_is_asked() -> None:
    asked = {task.info["expression"].partition("(")[0] for task in load_environment("number_file").tasks.split("eval")}
    assert asked == {"sum", "sorted"}
