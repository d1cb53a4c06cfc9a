"""Code that a model wrote, scored by what it computes: it runs in a sandbox, and is judged outside of it."""

import json
import math
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from envs.parsers import Parser, code_block
from envs.sandbox.base import Sandbox
from envs.sandbox.pool import SandboxPool

# The results go to a descriptor of their own, so that what the solution prints does not mix with them. Nothing that
# could tell what is expected is in the sandbox, so whoever tampers with this file can only answer wrongly.
DRIVER = """\
import json, os, sys
results = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
job = json.load(sys.stdin)
namespace = {"__name__": "solution"}
exec(compile(job["code"], "solution.py", "exec"), namespace)
function = namespace[job["function"]]
for i, arguments in enumerate(job["calls"]):
    try:
        line = json.dumps({"mark": job["mark"], "case": i, "value": function(*arguments)})
    except BaseException as error:
        line = json.dumps({"mark": job["mark"], "case": i, "error": type(error).__name__})
    print(line, file=results, flush=True)
"""


def code_tests(
    sandboxes: SandboxPool,
    *,
    name: str = "passed",
    parser: Parser[str] | None = None,
    seconds: float = 10.0,
    python: str = "python3",
) -> Callable[..., Awaitable[dict[str, float]]]:
    """A reward function: runs the completion's code on the task's cases, each rollout's in a sandbox of its own.

    The cases are `task.info["cases"]`: `{"args": [1, 2], "expected": 3}` for a function, whose name is
    `task.info["function"]`, or `{"stdin": "1 2", "stdout": "3"}` for a whole program. Expected values are compared
    here and never enter the sandbox: code that looks for its tests, or for their grader, finds none.

    Its scores are `NAME` (1 if all cases are right) and, at weight 0, `NAME_share` (how many are). Code that is
    missing, breaks, takes too long or writes too much is the model's doing; a sandbox that fails is nobody's 0 but an
    infrastructure failure. Numbers are right to 1e-9 of their size.

    Args:
        sandboxes: where it runs. It should be another pool than the one the agent works in.
        name: of the score.
        parser: finds the code in the completion; by default the last Python block.
        seconds: what all calls of a function, or one run of a program, may take.
        python: the command that starts Python in the sandbox.
    """
    find = parser or code_block()

    async def reward(completion: str, info: Mapping[str, Any]) -> dict[str, float]:
        cases = info["cases"]
        code = find(completion)
        right = 0
        if code is not None:
            async with sandboxes.sandbox() as sandbox:
                run = _programs if "stdin" in cases[0] else _calls
                right = sum(await run(sandbox, [python, "-I", "-c"], code, info, seconds))
        return {name: float(right == len(cases)), f"{name}_share": right / len(cases)}

    reward.__name__ = f"{name}_tests"
    reward.scores = {name: 1.0, f"{name}_share": 0.0}  # type: ignore[attr-defined]
    return reward


async def _calls(sandbox: Sandbox, python: list[str], code: str, info: Mapping[str, Any], seconds: float) -> list[bool]:
    mark, cases = secrets.token_hex(8), info["cases"]
    calls = [case["args"] for case in cases]
    job = json.dumps({"code": code, "function": info["function"], "calls": calls, "mark": mark})
    ran = await sandbox.exec([*python, DRIVER], stdin=job.encode(), wall=seconds)
    values: dict[int, Any] = {}
    for line in ran.stdout.splitlines():
        found = _json(line)
        # The solution can write such lines, too: whatever they hold, they are answers or nothing.
        if (
            isinstance(found, dict)
            and found.get("mark") == mark
            and type(found.get("case")) is int
            and "value" in found
        ):
            values[found["case"]] = found["value"]
    return [i in values and _equal(values[i], case["expected"]) for i, case in enumerate(cases)]


async def _programs(
    sandbox: Sandbox, python: list[str], code: str, info: Mapping[str, Any], seconds: float
) -> list[bool]:
    right = []
    for case in info["cases"]:
        ran = await sandbox.exec([*python, code], stdin=case["stdin"].encode(), wall=seconds)
        said = ran.stdout.decode("utf-8", "replace")
        right.append(ran.ok and not ran.dropped and said.split() == case["stdout"].split())
    return right


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None  # not one of the driver's lines


def _equal(value: Any, expected: Any) -> bool:
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, int | float) and isinstance(expected, int | float):
        try:
            return math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-12)
        except OverflowError:  # a whole number beyond all floats
            return value == expected
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(_equal, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(_equal(value[k], expected[k]) for k in value)
    return bool(value == expected)
