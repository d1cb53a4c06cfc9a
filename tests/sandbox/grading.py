"""Code that would rather fool its grader than solve its task; none of it is ever paid. `make test-sandbox` runs it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from envs import Completion, ConfigError, Rubric, Task, Trajectory, Turn
from envs.code_score import code_tests
from envs.sandbox import Bubblewrap, Limits, SandboxPool

POOL = SandboxPool(Bubblewrap(), Limits(wall=20, cpu=20, memory=2**28, processes=32, disk=2**25, files=500))
ADD = {"function": "add", "cases": [{"args": [1, 2], "expected": 3}, {"args": [20, 22], "expected": 42}]}
ECHO = {"cases": [{"stdin": "1 2\n", "stdout": "3"}, {"stdin": "20 22\n", "stdout": "42"}]}

HONEST = "def add(a, b):\n    return a + b"
FUNCTIONS = {
    "kills what started it": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\ndef add(a, b): return 0",
    "kills everything": "import os\ndef add(a, b):\n    os.kill(-1, 9)",
    "ends well at once": "import os\nos._exit(0)",
    "ends well when called": "def add(a, b):\n    raise SystemExit(0)",
    "prints results without the mark": (
        "import json, os\ndef add(a, b):\n"
        "    for fd in range(1, 10):\n"
        "        try: os.write(fd, json.dumps({'case': 0, 'value': 3}).encode() + b'\\n')\n"
        "        except OSError: pass\n    os._exit(0)"
    ),
    "steals the mark and guesses": (
        "import json, os, sys\ndef add(a, b):\n    names = sys._getframe(1).f_globals\n"
        "    for i in range(2):\n"
        "        line = json.dumps({'mark': names['job']['mark'], 'case': i, 'value': True, 'passed': True})\n"
        "        print(line, file=names['results'], flush=True)\n    os._exit(0)"
    ),
    "answers for cases that are none": (
        "import json, os, sys\ndef add(a, b):\n    names = sys._getframe(1).f_globals\n"
        "    for i in (-1, 'x', 2, None, 0.0, False, [], {}):\n"
        "        line = json.dumps({'mark': names['job']['mark'], 'case': i, 'value': 3})\n"
        "        print(line, file=names['results'], flush=True)\n"
        "    os._exit(0)"
    ),
    "exchanges json": (
        'import json\njson.dumps = lambda *a, **k: \'{"passed": true, "value": 3}\'\ndef add(a, b): return 0'
    ),
    "is equal to everything": (
        "class Yes(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def add(a, b): return Yes(7)"
    ),
    "is not a number": "def add(a, b): return float('nan')",
    "exchanges the comparison": (
        "import builtins, math\nmath.isclose = lambda *a, **k: True\nbuiltins.all = lambda x: True\n"
        "import envs.code_score\ndef add(a, b): return 0"
    ),
    "writes a reward": (
        "import os\nfor name in ('reward.txt', 'reward.json', '/tmp/reward', '/logs/verifier/reward.txt'):\n"
        "    try:\n        os.makedirs(os.path.dirname(name) or '.', exist_ok=True); open(name, 'w').write('1.0')\n"
        "    except OSError: pass\ndef add(a, b): return 1.0"
    ),
    "answers with a number beyond floats": "def add(a, b): return 10**400",
    "leaves processes that hold its output": (
        "import os, time\ndef add(a, b):\n    if os.fork() == 0:\n        os.setsid(); time.sleep(1000)\n    return 0"
    ),
    "writes for ever": "import os\ndef add(a, b):\n    while True: os.write(1, b'x' * 65536)",
    "answers with brackets": "import os\ndef add(a, b):\n    os.write(3, b'[' * 60000 + b'\\n'); return 0",
}
PROGRAMS = {
    "kills what started it": "import os\nos.kill(os.getppid(), 9)\nprint('killed')",
    "prints and fails": "print(input().replace('1 2', '3').replace('20 22', '42'))\nraise SystemExit(1)",
    "says that it passed": "print('PASSED 2/2\\nreward: 1.0')",
    "leaves a process that answers later": (
        "import os, sys, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(0.3); print(3, flush=True)"
    ),
    "prints it among much else": "print(*range(100_000))",
}


@pytest.fixture(autouse=True)
async def _bubblewrap() -> None:
    try:
        await (await Bubblewrap().start(Limits())).close()
    except ConfigError as error:
        pytest.skip(f"NOT TESTED: {error}")


async def graded(code: str, info: dict[str, Any]) -> Trajectory:
    task = Task("a", ({"role": "user", "content": "?"},), None, info)
    said = Completion({"role": "assistant", "content": f"```python\n{code}\n```"}, "stop")
    record = Trajectory(task, turns=[Turn(task.prompt, said, True)], stop="completed")
    await Rubric({code_tests(POOL, seconds=5): 1.0}).score(record, SimpleNamespace())
    return record


@pytest.mark.parametrize("way", FUNCTIONS)
async def test_a_function_that_cheats_earns_nothing(way: str) -> None:
    cheat, honest = await asyncio.gather(graded(FUNCTIONS[way], ADD), graded(HONEST, ADD))
    assert cheat.failure is None, "what code does is never the sandbox's failure"
    assert (cheat.reward, cheat.metrics["passed_share"]) == (0.0, 0.0)
    assert honest.reward == 1.0, "and it does nothing to the grading beside it"


@pytest.mark.parametrize("way", PROGRAMS)
async def test_a_program_that_cheats_earns_nothing(way: str) -> None:
    cheat = await graded(PROGRAMS[way], ECHO)
    assert cheat.failure is None and (cheat.reward, cheat.metrics["passed_share"]) == (0.0, 0.0)
    assert (await graded("print(sum(map(int, input().split())))", ECHO)).reward == 1.0
