import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from envs import Environment, Journal, ScriptedClient, Task, Trajectory, evaluate
from envs.errors import UpswingError
from envs.record import read


def trajectory(name: str, reward: float = 1.0) -> Trajectory:
    return Trajectory(Task.ask(name, "é\n2+2", "4"), stop="completed", reward=reward, rewards={"correct": 0.1 + 0.2})


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "rollouts.jsonl"
    with Journal(path) as journal:
        journal.append(trajectory("a"), step=3, purpose="train")
        journal.append(trajectory("b"))
        assert list(journal.read()) == [
            ({"step": 3, "purpose": "train"}, trajectory("a")),
            ({}, trajectory("b")),
        ]
    journal.close()
    with Journal(path) as journal:
        journal.append(trajectory("c"))
    assert [record.task.id for _, record in read(path)] == ["a", "b", "c"]
    assert json.loads(path.read_text().splitlines()[0])["keys"] == {"step": 3, "purpose": "train"}


@pytest.mark.parametrize("kept", [1, 50, -1])
def test_a_torn_last_line_is_lost_and_nothing_else(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "rollouts.jsonl"
    with Journal(path) as journal:
        journal.append(trajectory("a"))
        journal.append(trajectory("b" * 100_000))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + kept] if kept > 0 else whole[:kept])
    assert [record.task.id for _, record in read(path)] == ["a"]
    with Journal(path) as journal:
        assert path.stat().st_size == first
        journal.append(trajectory("c"))
        assert [record.task.id for _, record in journal.read()] == ["a", "c"]


def test_a_single_torn_line_leaves_an_empty_journal(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes(b'{"keys":{')
    with Journal(path) as journal:
        assert list(journal.read()) == []
    assert path.read_bytes() == b""


@pytest.mark.parametrize("damage", ["{oops", "3", '{"keys":{}}', '{"keys":{},"trajectory":{"task":{}}}'])
def test_damage_elsewhere_is_named_by_its_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "rollouts.jsonl"
    with Journal(path) as journal:
        journal.append(trajectory("a"))
    with path.open("a") as file:
        file.write(damage + "\n")
    with Journal(path) as journal:
        journal.append(trajectory("b"))
        with pytest.raises(UpswingError, match=r"rollouts\.jsonl:2 is damaged \("):
            list(journal.read())


def test_a_killed_process_loses_at_most_the_line_it_was_writing(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    code = f"""
from envs import Journal, Task, Trajectory
journal = Journal({str(path)!r})
for i in range(10**9):
    journal.append(Trajectory(Task.ask(str(i), "x" * 5000)))
    print(i, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = -1
        while told < 200:
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        told = max(
            [told, *(int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n"))]
        )
    with Journal(path) as journal:
        ids = [int(record.task.id) for _, record in journal.read()]
    assert ids == list(range(len(ids)))
    assert len(ids) >= told + 1, "what was acknowledged is there"


async def test_an_interrupted_evaluation_goes_on_from_its_journal(tmp_path: Path, sums: Environment) -> None:
    client = ScriptedClient(lambda messages: "1")
    with Journal(tmp_path / "rollouts.jsonl") as journal:
        await evaluate(sums, client, tasks=4, on_trajectory=journal.append)
    with Journal(tmp_path / "rollouts.jsonl") as journal:
        done = [record for _, record in journal.read()]
        evaluation = await evaluate(sums, client, tasks=6, done=done, on_trajectory=journal.append)
        assert [record.task.id for _, record in journal.read()] == [f"eval-{i}" for i in range(6)]
    assert len(client.requests) == 6
    assert evaluation.interval().mean == pytest.approx(1 / 6)
