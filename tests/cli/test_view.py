"""`rl view`: the list, one rollout, and the browser on a real pseudo-terminal."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs import Completion, Failure, Journal, Task, Trajectory, Turn
from envs.clients.scripted import tool_call
from rl.cli.main import main


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Six rollouts: rewards 0 to 1, one failed, one with a tool and hostile text."""
    path = tmp_path / "run"
    with Journal(path / "evals" / "eval.jsonl") as journal:
        for i in range(6):
            task = Task.ask(f"task-{i}", f"question {i}", str(i))
            said = "\x1b[2Jevil [bold]words[/bold]" if i == 4 else f"answer number {i}"
            completion = Completion(
                {"role": "assistant", "content": said},
                "stop",
                prompt_ids=[1, 2, 3],
                completion_ids=[10 + i, 11],
                logprobs=[-0.5, -4.5],
                versions=[2, 3],
            )
            turns = [Turn(task.prompt, completion, True, 0.25)]
            if i == 4:
                called = Completion(
                    tool_call("lookup", '{"word": "fox"}'), "tool_calls", usage={"completion_tokens": 7}
                )
                turns.insert(0, Turn(task.prompt, called, True))
            record = Trajectory(task, 0, turns, stop="completed", reward=i / 5, rewards={"right": i / 5})
            record.metrics = {"brief": 1.0}
            if i == 5:
                record.reward, record.rewards, record.metrics = None, {}, {}
                record.failure = Failure(
                    "reward", "ZeroDivisionError", "division by zero", "right", "Traceback: line 1"
                )
            journal.append(record)
    return path


@pytest.mark.parametrize(
    ("arguments", "tasks"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        (["reward<0.5"], [0, 1, 2]),
        (["right>=0.4", "reward!=0.6"], [2, 4]),
        (["failed"], [5]),
        (["scored", "turns=2"], [4]),
        (["task=task-3"], [3]),
        (["stop!=completed"], []),
        (["tokens>2"], [4]),
        (["--search", "NUMBER 2"], [2]),
        (["--search", "lookup"], [4]),
        (["--search", "zerodivision"], [5]),
    ],
)
def test_what_is_looked_for(
    run: Path, arguments: list[str], tasks: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["view", str(run), "--list", *arguments]) == 0
    out = capsys.readouterr().out
    assert [int(n) for n in re.findall(r"task-(\d)", out)] == tasks
    assert f"{len(tasks)} of 6 rollouts" in out and "\x1b" not in out


def test_one_rollout_with_its_tokens(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(run), "--show", "4", "--tokens"]) == 0
    out = capsys.readouterr().out
    for words in (
        "#4 task-4, sample 0",
        "reward 0.800  right 0.800",
        "brief 1.000",
        '→ lookup({"word": "fox"})',
        "␛[2Jevil [bold]words[/bold]",
        "3 tokens read, 2 sampled, log-probability mean -2.500, least -4.500, policy versions 2 to 3",
        "14:-0.50 11:-4.50",
        "7 sampled",
    ):
        assert words in out, out
    assert "\x1b" not in out
    assert main(["view", str(run), "--show", "5"]) == 0
    assert "reward, right: ZeroDivisionError: division by zero\nTraceback: line" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rewrd<1"], "unknown value 'rewrd'; did you mean 'reward'"),
        (["reward<x"], "the condition 'reward<x' compares with 'x'; expected a number"),
        (["stop<1"], "the condition 'stop<1' compares a text"),
        (["good"], "cannot read the condition 'good'"),
        (["--show", "6"], "--show 6; the run has the rollouts 0 to 5"),
    ],
)
def test_what_does_not_fit(run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(run), "--list", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_browser_is_moved_through_with_keys(run: Path) -> None:
    keyboard, terminal = pty.openpty()
    environ = {**os.environ, "COLUMNS": "100", "LINES": "30", "TERM": "xterm"}
    command = [sys.executable, "-m", "rl.cli.main", "view", str(run)]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environ)
    os.close(terminal)
    seen = ""

    def until(words: str) -> None:
        nonlocal seen
        end = time.monotonic() + 60
        while words not in seen:
            assert time.monotonic() < end, seen[-3000:]
            if select.select([keyboard], [], [], 0.2)[0]:
                seen += re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", os.read(keyboard, 65536).decode())
        seen = ""

    until("6 of 6")
    os.write(keyboard, b"j\x1b[B\r")  # down, down, open
    until("#2 task-2")
    os.write(keyboard, b"t")
    until("12:-0.50")
    os.write(keyboard, b"n")
    until("#3 task-3")
    os.write(keyboard, b"q/number 1\r")
    until("1 of 6   /number 1")
    os.write(keyboard, b"/" + b"\x7f" * 8 + b"\rfrewrd<1\r")
    until("unknown value 'rewrd'")
    os.write(keyboard, b"freward<0.5\r")
    until("3 of 6   f reward<0.5")
    os.write(keyboard, b"q")
    assert process.wait(30) == 0
    os.close(keyboard)
