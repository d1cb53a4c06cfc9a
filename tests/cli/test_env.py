"""`rl env init`, `validate` and `replay`, as one begins an environment and changes its mind about the rubric."""

import asyncio
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from envs import (
    Environment,
    Journal,
    Rollout,
    Rubric,
    ScriptedClient,
    Task,
    Taskset,
    Trajectory,
    evaluate,
    load_environment,
    multi_turn,
    rescore,
)
from envs.record import read
from envs.validation import validate
from rl.cli.env_validate import check_all
from rl.cli.main import main


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of eight rollouts in a new environment, every answer the same."""
    assert main(["env", "init", "letters"]) == 0
    environment = load_environment("./letters")
    folder = tmp_path / "runs" / "first"
    with Journal(folder / "evals" / "eval.jsonl") as journal:
        says_one = ScriptedClient(lambda messages: "<answer>1</answer>")
        asyncio.run(evaluate(environment, says_one, tasks=8, on_trajectory=journal.append))
    (folder / "config.yaml").write_text("env: {name: ./letters, format_weight: 0.5}\n")
    return folder


def test_what_is_begun_validates_and_passes_its_tests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "init", "word-search"]) == 0
    assert "next: rl env validate ./word-search" in capsys.readouterr().out
    assert sorted(str(p) for p in Path("word-search").rglob("*.*")) == [
        "word-search/README.md",
        "word-search/pyproject.toml",
        "word-search/tests/test_word_search.py",
        "word-search/word_search.py",
    ]
    assert "{{" not in "".join(p.read_text() for p in Path("word-search").rglob("*.*"))
    assert main(["env", "validate", "word-search", "format_weight=0.2", "--tasks", "4"]) == 0
    assert "word-search: 9 of 9 checks passed" in capsys.readouterr().out
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "word-search"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert "10 passed" in ran.stdout, ran.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init", "Mine!"], "'Mine!' cannot be the name of an environment"),
        (["init"], "no folder named; expected rl env init FOLDER"),
        (["validate", "--all", "wordle"], "--all goes with no name"),
        (["validate"], "no environment named"),
        (["validate", "wordel"], "unknown environment 'wordel'; did you mean 'wordle'"),
        (["validate", "wordle", "gueses=1"], "environment 'wordle' has no argument 'gueses'"),
        (["replya"], "unknown command of rl env 'replya'; did you mean 'replay'"),
    ],
)
def test_what_does_not_fit(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_folder_with_something_in_it_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine", "notes.txt").write_text("mine")
    assert main(["env", "init", "mine"]) == 2
    assert "mine exists already and is not empty" in capsys.readouterr().err


FAULTS = {
    "gold answers score high": ("str(word.count(letter))", "'7'", "mean 0.100, expected at least 0.9"),
    "empty answers score low": ("float(len(completion) <= 40)", "1.0", "mean 1.000, expected at most 0.5"),
    "splits share no problem": ('(i % 5 == 0) == (split == "eval")', "True", "occurs in split 'train' too"),
    "tasks are the same every time": ("sorted(set(word))", "[__import__('random').choice(word)]", "when loaded again"),
    "tasks survive JSON": ("str(word.count(letter)), ", "(1, 2), ", "changes on the way through JSON"),
    "rollouts are the same under a seed": (
        "len(completion) <= 40",
        "__import__('time').time_ns()",
        "went another way the second time: reward was",
    ),
}


@pytest.mark.parametrize("check", FAULTS)
def test_a_fault_is_found(check: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "init", "faulty"]) == 0
    old, new, found = FAULTS[check]
    code = Path("faulty/faulty.py")
    text = code.read_text().replace(old, new)
    if check == "empty answers score low" or check.startswith("rollouts"):
        text = text.replace("brief: 0.0", "brief: 1.0")
    if check == "gold answers score high":
        text = text.replace("{task.answer}", "0")  # an expert who is wrong
    code.write_text(text)
    assert main(["env", "validate", "faulty"]) == 1
    out = capsys.readouterr().out
    assert found in out and ("✗ " + check in out or check == "splits share no problem")


def test_a_reward_function_that_raises_is_shown_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "init", "faulty"]) == 0
    code = Path("faulty/faulty.py")
    code.write_text(code.read_text().replace("float(len(completion) <= 40)", "1 / 0"))
    assert main(["env", "validate", "faulty"]) == 1
    out = capsys.readouterr().out
    assert "brief raised ZeroDivisionError: division by zero" in out and "faulty.py" in out


def test_a_run_is_scored_with_the_rubric_of_today(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = Path("letters/letters.py")
    code.write_text(code.read_text().replace("brief: 0.0", "brief: -1.0"))
    assert main(["env", "replay", "first", "rubric.metrics=[turns]"]) == 0
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "│ evals/eval │ 8 │" in out and "│ brief │ │ 1.000 │ 1.000 │" in out
    then = [t for _, t in read(run / "evals" / "eval.jsonl")]
    now = [t for _, t in read(run / "replay" / "evals-eval.jsonl")]
    assert all(t.metrics["brief"] == 1.0 for t in then) and all(t.metrics == {"turns": 1.0} for t in now)
    # The run's own argument: the form earns 0.5.
    assert [t.reward for t in now] == [pytest.approx(0.5 * t.rewards["correct"] + 0.5 - 1.0) for t in now]
    assert [t.turns for t in now] == [t.turns for t in then]


def test_a_rubric_that_raises_today_is_an_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = Path("letters/letters.py")
    code.write_text(code.read_text().replace("float(len(completion) <= 40)", "1 / 0"))
    assert main(["env", "replay", str(run)]) == 1
    assert "8 of 8 rollouts could not be scored; the first: brief raised ZeroDivisionError" in capsys.readouterr().err


def test_a_run_without_rollouts_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("env: {name: wordle}\n")
    assert main(["env", "replay", str(tmp_path)]) == 1
    assert "has no rollouts" in capsys.readouterr().err
    assert main(["env", "replay", str(tmp_path / "none")]) == 2


def test_watching_takes_up_every_change_and_survives_mistakes(run: Path) -> None:
    # What a shell starts in the background ignores Ctrl-C, and so do all its children.
    listening = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from rl.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-u", "-c", listening, "env", "replay", str(run), "--watch"]
    code = Path("letters/letters.py")
    good = code.read_text()

    def write(text: str) -> None:
        draft = Path("draft")  # as editors do: never half a file
        draft.write_text(text)
        draft.replace(code)

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None

        def until_watching() -> str:
            lines: Iterator[str] = iter(process.stdout.readline, "")  # type: ignore[union-attr]
            said = []
            for line in lines:
                said.append(line)
                if line.startswith("watching"):
                    return "".join(said)
            raise AssertionError("".join(said))

        try:
            assert "0 × brief" not in until_watching()
            write(good.replace("<= 40)", "<= 4"))
            assert "SyntaxError" in until_watching()
            write(good.replace("<= 40)", "<= 4)"))
            assert re.search(r"brief\W+1\.000\W+0\.000", until_watching())
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()  # it would be waited for


async def test_state_that_is_not_saved_comes_from_the_harness_again() -> None:
    def respond(rollout: Rollout) -> str | None:
        rollout.state.seen = getattr(rollout.state, "seen", 0) + 1
        return None if rollout.state.seen == 2 else "again"

    def seen(state: object) -> float:
        return float(state.seen)  # type: ignore[attr-defined]

    tasks = Taskset({"eval": [Task.ask(f"t{i}", "?") for i in range(3)]})
    environment = Environment(tasks, multi_turn(respond, max_turns=4), Rubric({seen: 1.0}))
    before = await evaluate(environment, ScriptedClient(lambda messages: f"{len(messages)}"))
    again = await rescore(environment, [Trajectory.from_json(t.to_json()) for t in before.trajectories])
    assert [t.to_json() for t in again] == [t.to_json() for t in before.trajectories]
    changed = Environment(tasks, multi_turn(lambda rollout: "else", max_turns=4), Rubric({seen: 1.0}))
    for trajectory in await rescore(changed, before.trajectories):
        assert trajectory.reward is None and trajectory.failure is not None
        assert "turn 2 asks something else than was recorded" in trajectory.failure.message


def test_one_environment_that_cannot_be_loaded_does_not_hide_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    check = partial(validate, tasks=2)
    assert check_all(["nim", "nym", "warehouse"], check, Console()) == 1
    told = capsys.readouterr().out
    assert "nim: 9 of 9 checks passed" in told and "unknown environment 'nym'" in told
    assert told.rstrip().endswith("2 of 3 environments pass: not nym")
    assert check_all(["warehouse"], check, Console()) == 0


def test_an_environment_whose_packages_are_missing_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "sums.py").write_text("import a_module_that_nobody_has")
    assert check_all(["nim", str(folder)], partial(validate, tasks=1), Console(width=300)) == 0
    told = capsys.readouterr().out
    assert "– not checked: environment 'sums' needs the module 'a_module_that_nobody_has', which is not" in told
    assert f"`pip install {folder}`" in told
    assert told.rstrip().endswith(f"1 of 2 environments pass; not checked, for want of packages: {folder}")


def test_what_demonstrators_say_alike_is_played_once(tmp_path: Path) -> None:
    folder = tmp_path / "counted"
    folder.mkdir()
    (folder / "counted.py").write_text(COUNTED)
    assert [check.passed for check in validate(folder, tasks=1)] == [True] * 9
    said = Counter((folder / "said.txt").read_text().splitlines())
    assert said == {"I do not know": 2, "2": 3, "3": 3, "": 2}  # right, right for the other task, and right again


COUNTED = """
from pathlib import Path

from envs import Environment, Rubric, Task, Taskset, single_turn


def right(completion: str, answer: str) -> float:
    with Path(__file__).with_name("said.txt").open("a") as file:
        file.write(completion + "\\n")
    return float(completion == answer)


def demonstrate(task: Task, sample: int) -> str:
    return task.answer if sample == 7 else "I do not know"


def load_environment() -> Environment:
    tasks = {"train": [Task.ask("a", "1 + 1?", "2")], "eval": [Task.ask("b", "1 + 2?", "3")]}
    return Environment(Taskset(tasks), single_turn(), Rubric({right: 1.0}), demonstrate=demonstrate)
"""
