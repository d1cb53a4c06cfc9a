import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envs import Completion, InfrastructureError, Rubric, Task, Trajectory, Turn
from envs.code_score import code_tests
from envs.sandbox import Limits, SandboxPool, TrustedSubprocess

POOL = SandboxPool(TrustedSubprocess(model_code=True), Limits(wall=60.0))
ADD = {"function": "add", "cases": [{"args": [1, 2], "expected": 3}, {"args": [0.1, 0.2], "expected": 0.3}]}
ECHO = {"cases": [{"stdin": "1 2\n", "stdout": "3"}, {"stdin": "5 5\n", "stdout": "10\n"}]}


async def scored(code: str, info: dict[str, Any], pool: SandboxPool = POOL, seconds: float = 60.0) -> Trajectory:
    task = Task("a", ({"role": "user", "content": "?"},), None, info)
    said = Completion({"role": "assistant", "content": f"Here:\n```python\n{code}\n```"}, "stop")
    record = Trajectory(task, turns=[Turn(task.prompt, said, True)], stop="completed")
    await Rubric({code_tests(pool, seconds=seconds, python=sys.executable): 1.0}).score(record, SimpleNamespace())
    return record


FORGED = """
import json, os, sys
def add(a, b):
    os.write(2, b"x")
    for i in range(2):
        print(json.dumps({"case": i, "value": 3}))
    os._exit(0)
"""

STRANGE = """
import json, sys
def add(a, b):
    names = sys._getframe(1).f_globals
    for case in ([], {}, None, "0", 0.0, False, 7):
        print(json.dumps({"mark": names["job"]["mark"], "case": case, "value": 3}), file=names["results"], flush=True)
    raise SystemExit
"""


@pytest.mark.parametrize(
    ("code", "share"),
    [
        ("def add(a, b):\n    print('noise')\n    return a + b", 1.0),
        ("def add(a, b):\n    return 3", 0.5),
        ("def add(a, b):\n    return a + b if a else exit()", 1.0),
        ("def add(a, b):\n    return True", 0.0),
        ("def add(a, b", 0.0),
        ("while True: pass", 0.0),
        (FORGED, 0.0),
        ("def add(a, b):\n    return 10**400", 0.0),
        (STRANGE, 0.0),
    ],
)
async def test_code_is_scored_by_what_it_computes(code: str, share: float) -> None:
    record = await scored(code, ADD, seconds=1.0 if code.startswith("while") else 60.0)
    assert record.failure is None
    assert (record.reward, record.metrics) == (float(share == 1.0), {"passed_share": share})


async def test_a_program_is_scored_by_what_it_prints() -> None:
    assert (await scored("print(sum(map(int, input().split())))", ECHO)).reward == 1.0
    assert (await scored("print(3)", ECHO)).metrics == {"passed_share": 0.5}
    assert (await scored("print(3); exit(1)", ECHO)).metrics == {"passed_share": 0.0}


async def test_what_is_expected_never_enters_the_sandbox(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    spy = f"import sys, gc\nopen({str(seen)!r}, 'w').write(repr([sys.argv, globals(), gc.get_objects()]))\n"
    secret = {"function": "add", "cases": [{"args": [1], "expected": "the-secret"}]}
    assert (await scored(f"{spy}def add(a):\n    return a", secret)).reward == 0.0
    assert "solution" in seen.read_text() and "the-secret" not in seen.read_text()


async def test_no_code_is_the_models_doing_and_no_sandbox_is_not() -> None:
    task = Task("a", ({"role": "user", "content": "?"},), None, ADD)
    record = Trajectory(
        task, turns=[Turn(task.prompt, Completion({"role": "assistant", "content": "no"}, "stop"), True)]
    )
    await Rubric({code_tests(POOL): 1.0}).score(record, SimpleNamespace())
    assert record.reward == 0.0

    class Broken(TrustedSubprocess):
        async def start(self, limits: Limits) -> Any:
            raise InfrastructureError("no room")

    failed = await scored("def add(a, b):\n    return a + b", ADD, SandboxPool(Broken(), retries=0))
    assert failed.reward is None and failed.failure is not None and failed.failure.kind == "infrastructure"
