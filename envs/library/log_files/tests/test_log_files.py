"""Sandbox and scores of `log_files`."""

import json

import pytest

from envs import ConfigError, Message, ScriptedClient, Trajectory, load_environment, run_task
from envs.clients.scripted import tool_call

ENVIRONMENT = load_environment("log_files", days=2, lines=20, eval_tasks=8)
TASK = ENVIRONMENT.tasks.split("eval")[0]


async def run(*commands: str) -> Trajectory:
    calls: list[Message] = [tool_call("bash", json.dumps({"command": command})) for command in commands]
    try:
        record = await run_task(ENVIRONMENT, TASK, ScriptedClient([*calls, "Done."]))
    except ConfigError as error:
        if "bubblewrap" not in str(error):
            raise
        pytest.skip(f"NOT TESTED: {error}")
    assert record.failure is None, record.failure
    return record


async def test_the_answer_is_what_the_file_says_at_the_end() -> None:
    record = await run("cat logs-*/* | wc -l", f"echo ' {TASK.answer}' > answer.txt")
    assert record.messages[2]["content"] == "40"
    assert (record.reward, record.metrics) == (1.0, {"answered": 1.0})


@pytest.mark.parametrize(
    "command",
    ["echo 99999 > answer.txt", "mkdir answer.txt", "mkfifo answer.txt", "ln -s /dev/zero answer.txt", "true"],
)
async def test_anything_else_in_its_place_is_worth_nothing(command: str) -> None:
    record = await run(command)
    assert record.reward == 0.0 and record.metrics == {"answered": float("99999" in command)}


def test_every_kind_of_question_is_asked() -> None:
    asked = {
        task.info["command"].rpartition("|")[2].split()[0] for task in load_environment("log_files").tasks.split("eval")
    }
    assert asked == {"wc", "awk", "tail"}
