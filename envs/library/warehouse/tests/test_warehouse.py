"""Orders, tools and scores of `warehouse`."""

import json

from envs import Message, ScriptedClient, Task, Trajectory, load_environment, run_task
from envs.clients.scripted import tool_call

ENVIRONMENT = load_environment("warehouse")
TASK = Task.ask(
    "t", "?", {"A": {"bolts": 1}, "B": {"bolts": 2}}, shelves={"A": {"bolts": 3}, "B": {}}, order={}
)  # what is asked for does not matter here: `answer` has it


async def run(*replies: str | Message) -> Trajectory:
    return await run_task(ENVIRONMENT, TASK, ScriptedClient(replies))


def move(count: int, source: str, target: str) -> Message:
    return tool_call("move", json.dumps({"item": "bolts", "count": count, "source": source, "target": target}))


async def test_what_is_there_at_the_end_counts() -> None:
    record = await run(tool_call("look", '{"shelf": "A"}'), move(2, "A", "B"), "done")
    assert (record.reward, record.metrics) == (1.0, {"moves": 1.0})
    assert [m["content"] for m in record.messages if m["role"] == "tool"] == [
        '{"bolts": 3}',
        "2 bolts are on shelf B now",
    ]
    assert (await run(move(2, "A", "B"), move(1, "A", "B"), move(1, "B", "A"), "done")).reward == 1.0
    assert (await run(move(1, "A", "B"), "done")).reward == 0.0


async def test_what_cannot_be_moved_changes_nothing() -> None:
    record = await run(move(4, "A", "B"), move(1, "A", "C"), move(0, "A", "B"), "done")
    assert (record.reward, record.metrics) == (0.0, {"moves": 0.0})
    said = [str(m["content"]) for m in record.messages if m["role"] == "tool"]
    assert said[0].endswith("there are 3 bolts on shelf A") and said[1].endswith("the shelves are A, B")


def test_every_order_asks_for_a_change() -> None:
    for task in ENVIRONMENT.tasks.split("eval"):
        assert task.answer != task.info["shelves"]
        before, after = (
            {g: sum(s.get(g, 0) for s in x.values()) for g in ("bolts", "drums")}
            for x in (task.info["shelves"], task.answer)
        )
        assert before == after
