"""What is asked, what counts, and what is refused, in `reasoning_gym`."""

import ast
import importlib
import importlib.util
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from envs import ConfigError, Environment, ScriptedClient, Trajectory, load_environment, run_task
from envs.errors import MissingPackageError
from envs.resolve import find_environment
from envs.types import Task

try:
    MODULE: Any = find_environment("reasoning_gym").function().__globals__
except MissingPackageError as error:
    pytest.skip(f"NOT TESTED: {error}", allow_module_level=True)

README = Path(__file__).parents[1] / "README.md"


def load(dataset: object = "chain_sum", **arguments: Any) -> Environment:
    return load_environment("reasoning_gym", **{"dataset": dataset, "train_tasks": 40, "eval_tasks": 12, **arguments})


async def say(environment: Environment, task: Task, text: str) -> Trajectory:
    record = await run_task(environment, task, ScriptedClient([text]))
    assert record.failure is None, record.failure
    return record


@pytest.mark.parametrize("dataset", ["chain_sum", "gcd", "spell_backward", "mini_sudoku", "syllogism", "acre"])
async def test_any_dataset_is_asked_by_its_name_and_shows_what_is_right(dataset: str) -> None:
    environment = load(dataset)
    train, held_out = ({str(t.prompt[-1]["content"]) for t in environment.tasks.split(s)} for s in ("train", "eval"))
    assert len(train) == 40 and len(held_out) == 12 and train.isdisjoint(held_out)
    other = load(dataset, seed=7, train_tasks=1).tasks.split("eval")
    assert train.isdisjoint(str(t.prompt[-1]["content"]) for t in other), "whatever the seed"
    for task in environment.tasks.split("eval").head(3):
        (shown,) = environment.demonstration(task)
        record = await say(environment, task, f"I think: <answer>{shown['content']}")
        assert (record.reward, record.metrics) == (1.0, {"right": 1.0, "answered": 1.0, "unreadable": 0.0})


@pytest.mark.parametrize(
    ("said", "reward", "answered"),
    [
        ("<answer>12</answer>", 1.0, 1.0),
        ("<answer>1</answer> no, <answer> +012.0 </answer>", 1.0, 1.0),
        ("<answer>13</answer>", 0.0, 1.0),
        ("<answer>it is 12</answer>", 0.25, 1.0),  # the package pays for a part
        ("12", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
async def test_the_packages_own_score_is_the_reward(said: str, reward: float, answered: float) -> None:
    environment = load()
    task = next(t for seed in range(99) for t in load(seed=seed).tasks if t.answer == "12")
    record = await say(environment, task, said)
    assert (record.reward, record.metrics["answered"], record.metrics["right"]) == (reward, answered, reward // 1)


def test_options_reach_the_dataset_and_make_questions_small() -> None:
    environment = load(options={"min_terms": 2, "max_terms": 2, "max_digits": 1}, train_tasks=300, eval_tasks=300)
    questions = [str(task.prompt[-1]["content"]) for task in environment.tasks]
    assert all(re.search(r": \d [+-] \d =$", question) for question in questions)
    assert 195 < len(questions) == len(set(questions)) <= 200, "as many as there are different ones, and no more"


def test_a_mix_has_the_shares_it_was_given() -> None:
    tasks = load({"chain_sum": 3, "gcd": 1}, options={"gcd": {"max_value": 30}}, train_tasks=400).tasks.split("train")
    counts = Counter(task.id.partition("-")[0] for task in tasks)
    assert 80 < counts["gcd"] < 120 and counts["chain_sum"] == 400 - counts["gcd"]
    values = [int(n) for t in tasks if t.id[0] == "g" for n in re.findall(r"\d+", str(t.prompt[-1]["content"]))]
    assert max(values) <= 30


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            {"dataset": "chian_sum"},
            r"unknown dataset of reasoning-gym 'chian_sum'; did you mean 'chain_sum'.*known: ab, ",
        ),
        ({"dataset": "composite"}, "unknown dataset of reasoning-gym 'composite'"),
        ({"options": {"max_term": 3}}, "'max_term'; did you mean 'max_terms'.*by default: min_terms=2, max_terms=6"),
        ({"options": {"seed": 3}}, "unknown option of dataset 'chain_sum' 'seed'"),
        ({"options": {"max_terms": 1}}, "refuses options={'max_terms': 1}: AssertionError: max_terms must be >= min_t"),
        ({"options": {"max_terms": "x"}}, "refuses options={'max_terms': 'x'}: TypeError"),
        ({"dataset": {"gcd": 1}, "options": {"lcm": {}}}, "options of 'lcm', which is not in the mix: gcd"),
        ({"dataset": {"gcd": 1}, "options": {"gcd": 3}}, "options of 'gcd' are 3; expected a mapping"),
        ({"dataset": {"gcd": 0}}, "expected names with positive shares"),
        ({"dataset": {}}, "expected names with positive shares"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(**arguments)


def test_a_dataset_without_answers_shows_none() -> None:
    environment = load("propositional_logic")
    assert environment.demonstrate is None and environment.tasks[0].answer is None
    assert "propositional_logic" in MODULE["ANSWERLESS"]


HOSTILE = {
    "runs a program in a list": ("spiral_matrix", "[__import__('os').system('touch {path}')]"),
    "runs a program in a formula": ("countdown", "__import__('os').system('touch {path}')"),
    "opens a file in a formula": ("countdown", "open(chr(97),chr(119))"),
    "reaches for what numbers are made of": ("countdown", "(1).__class__"),
    "is nested deeply": ("countdown", "(" * 5000 + "1" + ")" * 5000),
}


@pytest.mark.parametrize("way", HOSTILE)
async def test_an_answer_that_is_a_program_does_not_run(way: str, tmp_path: Path) -> None:
    dataset, said = HOSTILE[way]
    environment = load(dataset, train_tasks=1, eval_tasks=1)
    task = environment.tasks.split("eval")[0]
    record = await say(environment, task, f"<answer>{said.format(path=tmp_path / 'made')}</answer>")
    assert record.reward is not None and record.reward <= 0.01
    assert not (tmp_path / "made").exists()


async def test_an_answer_that_takes_for_ever_is_wrong_and_the_next_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULE, "SECONDS", 0.2)
    environment = load("countdown", train_tasks=1, eval_tasks=1)
    task = environment.tasks.split("eval")[0]
    record = await say(environment, task, "<answer>9**9**9**9</answer>")
    assert (record.reward, record.metrics["unreadable"]) == (0.0, 1.0)
    assert (await say(environment, task, f"<answer>{task.answer}</answer>")).reward == 1.0


@pytest.mark.parametrize(
    ("dataset", "wrong"), [("game_of_life_halting", "maybe"), ("puzzle24", "6 * 4 + 1 - 1"), ("puzzle24", "24")]
)
async def test_what_the_package_would_pay_for_any_answer_is_worth_nothing(dataset: str, wrong: str) -> None:
    environment = load(dataset, train_tasks=1, eval_tasks=1)
    task = environment.tasks.split("eval")[0]
    assert (await say(environment, task, f"<answer>{wrong}</answer>")).reward == 0.0
    assert (await say(environment, task, f"<answer>{task.answer}</answer>")).reward == 1.0


def test_nothing_else_of_the_package_evaluates_what_a_model_wrote() -> None:
    """`eval` and the like by file: what is new in a version of the package has to be looked at."""
    spec = importlib.util.find_spec("reasoning_gym")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    found = set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("eval", "exec", "__import__"):
                found.add(".".join(file.relative_to(root).with_suffix("").parts))
    replaced = importlib.import_module(f"{MODULE['__name__']}.worker").EVALUATING
    theirs = {  # their own texts: reference programs, generated problems, fractions
        "code.codeio",
        "algorithmic.number_sorting",
        "arithmetic.bitwise_arithmetic",
        "arithmetic.basic_arithmetic",
        "arithmetic.gsm_symbolic.generators_00_49",
        "arithmetic.gsm_symbolic.generators_50_99",
    }
    assert found == theirs | set(replaced)


def test_the_readme_lists_every_dataset() -> None:
    listed = README.read_text("utf-8").partition("## Datasets")[2].partition("\n## ")[0]
    assert (
        re.findall(r"`(\w+)`", listed.partition("\n\n")[2].partition("\n\n")[0]) == MODULE["GYM"].ask("names")["names"]
    )
