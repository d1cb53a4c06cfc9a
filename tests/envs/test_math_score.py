import asyncio
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from envs import Completion, Rubric, Task, Trajectory, Turn, math_equal, xml_tag
from envs.math_score import _WORKERS

CASES = [
    (r"So \boxed{\frac{1}{2}}", "0.5", 1.0),
    ("the answer is 4", "4", 1.0),
    ("5", "4", 0.0),
    (r"\boxed{x^2-1}", "(x-1)(x+1)", 1.0),
    (r"$\{1,2\}$", r"\{2,1\}", 1.0),
    ("I do not know", "4", 0.0),
    ("", "4", 0.0),
]


async def test_expressions_are_compared_and_hostile_ones_end() -> None:
    reward = math_equal(seconds=0.5, processes=1)
    found = [await reward(completion=completion, answer=answer) for completion, answer, _ in CASES]
    assert found == [score for *_, score in CASES]
    tower = reward(completion=r"\boxed{9^{9^{9^{9}}}}", answer="4")
    assert await asyncio.wait_for(tower, 30) == 0.0
    assert await reward(completion="4", answer="4") == 1.0  # the process is as good as before


async def test_a_gold_answer_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="math-verify finds no mathematics in the task's answer ''"):
        await math_equal(processes=1)(completion="4", answer="")


async def test_a_process_that_is_killed_is_the_machines_fault_and_replaced() -> None:
    reward = math_equal(processes=1, parser=xml_tag("a"))
    assert await reward(completion="<a>4</a> of 5", answer="4") == 1.0
    for worker in _WORKERS.values():
        os.kill(worker._process.pid, signal.SIGKILL)
    task = Task.ask("a", "2+2", "4")
    record = Trajectory(
        task, turns=[Turn(task.prompt, Completion({"role": "assistant", "content": "<a>4</a>"}, "stop"), True)]
    )
    await Rubric({reward: 1.0}).score(record, SimpleNamespace(), retries=1)
    assert record.reward == 1.0


def test_a_missing_package_is_named() -> None:
    code = "import sys; sys.modules['math_verify'] = None\nfrom envs import math_equal\nmath_equal()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'upswing[math]'" in ran.stderr
