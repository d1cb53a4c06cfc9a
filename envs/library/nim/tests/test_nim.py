"""Rules, players and scores of `nim`."""

from functools import reduce
from operator import xor
from typing import Any

import pytest

from envs import ScriptedClient, Task, load_environment, run_group, run_task

TASK = Task("1-2", ({"role": "system", "content": "Nim"},), None, {"heaps": [1, 2]})
SELF = load_environment("nim", opponent="self")


def perfect(messages: list[Any]) -> str:
    """Wins wherever one can, without the rules of `nim.py`."""
    heaps = [int(line.rpartition(" ")[2]) for line in messages[-1]["content"].splitlines() if ":" in line]
    for i, count in enumerate(heaps):
        for take in range(1, count + 1):
            if reduce(xor, [*heaps[:i], count - take, *heaps[i + 1 :]]) == 0:
                return f"Heap {i + 1}: I take {i + 1} {take}"
    return next(f"{i + 1} 1" for i, count in enumerate(heaps) if count)


async def test_in_self_play_each_side_has_a_record_and_the_group_sees_both() -> None:
    first, second = await run_group(SELF, TASK, ScriptedClient(perfect), size=2)
    assert (first.reward, second.reward) == (1.0, 0.0)
    assert (first.roles["second"].reward, second.roles["first"].reward) == (0.0, 1.0)
    assert first.stop == second.stop == "completed" and len(first.turns) == 2 and len(second.turns) == 1


@pytest.mark.parametrize("said", ["", "I pass", "3 1", "1 2", "0 1", "1 0", "1"])
async def test_a_move_that_is_none_loses(said: str) -> None:
    record = await run_task(SELF, TASK, ScriptedClient([said]))
    assert (record.reward, record.metrics, record.roles["second"].reward) == (0.0, {"legal": 0.0}, 1.0)


async def test_who_begins_and_plays_well_wins_against_chance() -> None:
    environment = load_environment("nim")
    for task in environment.tasks.split("eval").head(16):
        record = await run_task(environment, task, ScriptedClient(perfect))
        assert record.reward == 1.0 and list(record.roles) == ["second"]
