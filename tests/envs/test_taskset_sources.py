import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from envs import ConfigError, Task, TaskJournal, Taskset, TasksetError


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "q.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("create table q (id text, question text, answer text, info text, part text)")
        rows = [
            (f"t{i}", f"{i}+1", str(i + 1), json.dumps({"level": i}), "eval" if i > 7 else "train") for i in range(10)
        ]
        connection.executemany("insert into q values (?, ?, ?, ?, ?)", rows)
    connection.close()
    return path


def test_a_query_gives_tasks(database: Path) -> None:
    taskset = Taskset.from_sqlite(database, "select * from q order by id", split_column="part")
    assert [len(taskset.split(name)) for name in ("train", "eval")] == [8, 2]
    assert taskset[0] == Task.ask("t0", "0+1", "1", level=0)
    divided = Taskset.from_sqlite(database, "select id, question from q order by id")
    assert [len(divided.split(name)) for name in ("train", "eval")] == [9, 1]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select missing from q", r"q\.sqlite: the query 'select missing from q' failed: no such column: missing"),
        ("delete from q", "attempt to write a readonly database"),
        ("select id from q", r"q\.sqlite: row 0 has no prompt; expected 'prompt' or 'question'"),
        ("select question, '{oops' as info from q", r"q\.sqlite: row 0: 'info' is no JSON"),
    ],
)
def test_what_is_wrong_with_a_query_is_said(database: Path, query: str, message: str) -> None:
    with pytest.raises(TasksetError, match=message):
        len(Taskset.from_sqlite(database, query))
    with pytest.raises(TasksetError, match=r"cannot read .*none\.sqlite: no such file"):
        len(Taskset.from_sqlite(database.with_name("none.sqlite"), query))


def test_a_journal_grows_and_what_was_there_keeps_its_place(tmp_path: Path) -> None:
    path = tmp_path / "stream" / "tasks.jsonl"
    journal = TaskJournal(path)
    for i in range(20):
        journal.append(Task.ask(f"user-{i}", f"question {i}", hour=i))
    early = Taskset.from_journal(path, fractions={"train": 0.5, "eval": 0.5})
    before = {name: list(early.split(name)) for name in early.splits}
    assert sorted(t.id for t in early) == sorted(f"user-{i}" for i in range(20))
    with path.open("a") as file:
        file.write('{"id": "torn", "question": "half a li')
    assert len(early.grown()) == 20
    for i in range(20, 60):
        journal.append(Task.ask(f"user-{i}", f"question {i}"))
    late = early.grown()
    assert (len(early), len(late)) == (20, 60)
    for name, tasks in before.items():
        assert list(late.split(name))[: len(tasks)] == tasks
    assert 15 <= len(late.split("train")) <= 45


def test_a_journal_that_is_empty_or_damaged_says_so(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    with pytest.raises(TasksetError, match=r"cannot read .*tasks\.jsonl"):
        len(Taskset.from_journal(path))
    path.write_text("")
    with pytest.raises(TasksetError, match=r"tasks\.jsonl has no task yet for split 'train'"):
        len(Taskset.from_journal(path))
    path.write_text('{"question": "a"}\n{oops}\n')
    with pytest.raises(TasksetError, match=r"tasks\.jsonl:2 is not JSON"):
        len(Taskset.from_journal(path))


def test_a_hugging_face_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"question": f"{i}+1", "answer": str(i + 1)} for i in range(10)])
    datasets.DatasetDict({"train": data, "test": data.select([0, 1])}).save_to_disk(tmp_path / "sums")
    name = str(tmp_path / "sums")
    taskset = Taskset.from_hf(name, splits={"train": "train", "eval": "test"})
    assert [len(taskset.split(split)) for split in ("train", "eval")] == [10, 2]
    assert taskset.split("eval")[0] == Task.ask("sums-test-0", "0+1", "1")
    assert [len(Taskset.from_hf(name).split(split)) for split in ("train", "eval")] == [9, 1]
    with pytest.raises(TasksetError, match="cannot load split 'dev' of"):
        len(Taskset.from_hf(name, splits={"train": "dev"}))
    with pytest.raises(TasksetError, match=r"sums\[train\]: row 0: making a task of .* raised KeyError: 'q'"):
        len(Taskset.from_hf(name, row=lambda row: Task.ask(row["q"], row["q"])))


def test_without_the_package_it_is_named() -> None:
    code = "import sys; sys.modules['datasets'] = None\nfrom envs import Taskset\nTaskset.from_hf('a/b')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'upswing[datasets]'" in ran.stderr


def test_fractions_are_checked() -> None:
    with pytest.raises(ConfigError, match="expected positive numbers that sum to 1"):
        Taskset.from_journal("tasks.jsonl", fractions={"train": 2.0})
