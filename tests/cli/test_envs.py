"""`rl envs` lists and describes."""

from pathlib import Path

import pytest

from envs.resolve import list_environments
from rl.cli.main import main


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_the_list_names_what_comes_with_upswing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs"]) == 0
    out = capsys.readouterr().out
    for word in ("reverse_text", "wordle", "bundled", "min_length", "max_guesses"):
        assert word in out


def test_a_description_has_arguments_tasks_rewards_and_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "reverse_text", "max_length=5", "train_tasks=100"]) == 0
    out = capsys.readouterr().out
    assert "reverse_text 0.1.0" in out
    assert "most characters of a text, spaces included." in out  # what an argument means, out of the docstring
    assert "one of 'word', 'phrase'" in out  # its type
    assert "train: 100\n" in out and "eval: " in out
    assert "1 × similarity\n" in out and "0 × exact_match\n" in out
    assert "user: " in out and "answer: " in out


def test_an_environment_of_ones_own_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "sums.py").write_text(
        '"""Add two numbers."""\n'
        "from envs import Environment, Rubric, Task, Taskset, single_turn\n"
        "def right(completion, answer) -> float:\n    return float(completion == answer)\n"
        "def load_environment(top: int = 9) -> Environment:\n"
        '    """Sums.\n\n    Args:\n        top: the largest number [included].\n    """\n'
        "    tasks = [Task.ask(f'{n}', f'{n} + 1', str(n + 1)) for n in range(top)]\n"
        "    return Environment(Taskset({'train': tasks}), single_turn(), Rubric({right: 1.0}))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["envs", "./sums", "top=3"]) == 0
    out = capsys.readouterr().out
    assert "Add two numbers." in out and "the largest number [included]." in out
    assert "train: 3\n" in out and "user: 0 + 1\n" in out and "answer: 1\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["wordel"],
            "unknown environment 'wordel'; did you mean 'wordle'?; "
            f"known: {', '.join(info.name for info in list_environments())}; "
            "a folder is given as a path, like ./my_environment",
        ),
        (["wordle", "max_gueses=3"], "environment 'wordle' has no argument 'max_gueses'; did you mean 'max_guesses'?"),
        (
            ["wordle", "max_guesses=three"],
            "environment 'wordle': argument 'max_guesses' is 'three' (str), expected int",
        ),
        (["wordle", "--all"], "unrecognized arguments: --all; see rl envs --help"),
    ],
)
def test_what_does_not_fit(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
