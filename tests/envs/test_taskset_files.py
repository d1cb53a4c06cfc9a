import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs import ConfigError, Task, Taskset, TasksetError


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_jsonl_rows_become_tasks(tmp_path: Path) -> None:
    path = write(
        tmp_path / "questions.jsonl",
        {"id": "first", "question": "2+2", "answer": "4", "level": 1},
        "",
        {"prompt": "3+3", "system": "Be brief.", "info": {"level": 2}},
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
    )
    taskset = Taskset.from_jsonl(path, fractions={"train": 1.0})
    assert list(taskset) == [
        Task("first", ({"role": "user", "content": "2+2"},), "4", {"level": 1}),
        Task(
            "questions-1",
            ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "3+3"}),
            None,
            {"level": 2},
        ),
        Task("questions-2", ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})),
    ]


def test_a_file_is_divided_nine_to_one_by_default(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", *({"id": f"t{i}", "question": "?"} for i in range(20)))
    taskset = Taskset.from_jsonl(path)
    assert [len(taskset.split(name)) for name in ("train", "eval")] == [18, 2]
    assert len({task.id for task in taskset}) == 20
    train = [int(task.id[1:]) for task in taskset.split("train")]
    assert train == sorted(train), "within a split the order of the file stays"
    reversed_rows = write(tmp_path / "r.jsonl", *({"id": f"t{i}", "question": "?"} for i in reversed(range(20))))
    again = Taskset.from_jsonl(reversed_rows)
    assert {t.id for t in again.split("eval")} == {t.id for t in taskset.split("eval")}


def test_every_split_of_a_small_file_gets_a_task(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "a"}, {"question": "b"})
    taskset = Taskset.from_jsonl(path)
    assert [len(taskset.split(name)) for name in taskset.splits] == [1, 1]
    one = Taskset.from_jsonl(write(tmp_path / "one.jsonl", {"question": "a"}))
    with pytest.raises(TasksetError, match="1 tasks cannot be divided into 2 splits"):
        len(one)


def test_a_column_may_name_the_split(tmp_path: Path) -> None:
    rows = [{"question": str(i), "part": "eval" if i == 1 else "train"} for i in range(3)]
    taskset = Taskset.from_jsonl(write(tmp_path / "q.jsonl", *rows), split_column="part")
    assert repr(taskset) == "Taskset(not built)"
    assert taskset.splits == ("train", "eval")
    assert [task.id for task in taskset.split("train")] == ["q-0", "q-2"]
    assert taskset[0].info == {}


def test_each_split_may_have_its_file(tmp_path: Path) -> None:
    train, evaluation = (write(tmp_path / f"{name}.jsonl", {"question": name}) for name in ("train", "eval"))
    taskset = Taskset.from_jsonl({"train": train, "eval": evaluation})
    assert [task.id for task in taskset] == ["train-0", "eval-0"]
    with pytest.raises(ConfigError, match="split_column='x' is for a single file"):
        Taskset.from_jsonl({"train": train}, split_column="x")


def test_csv_and_parquet_read_the_same(tmp_path: Path) -> None:
    csv = write(tmp_path / "q.csv", "id,question,answer", 'a,"What, now?",1', "b,And then?,2")
    pq.write_table(
        pa.table({"id": ["a", "b"], "question": ["What, now?", "And then?"], "answer": ["1", "2"]}),
        tmp_path / "q.parquet",
    )
    from_csv = list(Taskset.from_csv(csv, fractions={"train": 1.0}))
    assert from_csv == list(Taskset.from_parquet(tmp_path / "q.parquet", fractions={"train": 1.0}))
    assert from_csv[0] == Task.ask("a", "What, now?", "1")


def test_parquet_messages_lose_the_keys_they_do_not_have(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "u", "name": None}, {"role": "assistant", "content": None, "name": "n"}]
    pq.write_table(pa.table({"prompt": [messages]}), tmp_path / "q.parquet")
    (task,) = Taskset.from_parquet(tmp_path / "q.parquet", fractions={"train": 1.0})
    assert task.prompt == ({"role": "user", "content": "u"}, {"role": "assistant", "content": None, "name": "n"})


def test_rows_may_be_made_into_tasks_by_a_function(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"q": "2+2", "a": 4}, {"q": "3+3"})
    taskset = Taskset.from_jsonl(path, fractions={"train": 1.0}, row=lambda row: Task.ask(row["q"], row["q"], row["a"]))
    with pytest.raises(TasksetError, match=r"q\.jsonl:2: making a task of .* raised KeyError: 'a'"):
        len(taskset)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{oops", "q.jsonl:2 is not JSON (Expecting property name"),
        ("[1]", "q.jsonl:2 is a list; expected a JSON object: '[1]'"),
        ({"answer": 1}, "q.jsonl:2 has no prompt; expected 'prompt' or 'question'"),
        ({"prompt": "a", "question": "b"}, "q.jsonl:2 has prompt and question; expected 'prompt' or 'question'"),
        ({"prompt": ""}, "q.jsonl:2: 'prompt' is ''; expected text or a list of messages with a 'role'"),
        ({"prompt": [{"content": "a"}]}, "q.jsonl:2: 'prompt' is [{'content': 'a'}]; expected text or a list"),
        ({"prompt": "a", "info": 3}, "q.jsonl:2: 'info' is 3; expected an object"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "fine"}, row)
    with pytest.raises(TasksetError) as caught:
        len(Taskset.from_jsonl(path))
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_other_damage_is_named_as_well(tmp_path: Path) -> None:
    with pytest.raises(TasksetError, match=r"cannot read .*none\.jsonl: No such file"):
        len(Taskset.from_jsonl(tmp_path / "none.jsonl"))
    ragged = write(tmp_path / "q.csv", "id,question", "a,b,c")
    with pytest.raises(TasksetError, match=r"q\.csv:2 has more or fewer cells than the header \(id, question\)"):
        len(Taskset.from_csv(ragged))
    with pytest.raises(TasksetError, match=r"cannot read .*q\.csv as Parquet"):
        len(Taskset.from_parquet(ragged))
    with pytest.raises(TasksetError, match=r"q\.jsonl:1: column 'part' is None; expected the name of the row's split"):
        len(Taskset.from_jsonl(write(tmp_path / "q.jsonl", {"question": "a"}), split_column="part"))
    with pytest.raises(ConfigError, match=r"fractions=\{'train': 0\.5\}; expected positive numbers that sum to 1"):
        Taskset.from_jsonl(ragged, fractions={"train": 0.5})
