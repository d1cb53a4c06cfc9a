"""Tasks from files: rows with their place in the file, one task per row, rows divided into splits."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from envs.errors import ConfigError, TasksetError
from envs.taskset import Splits, rank
from envs.types import Message, Task

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]
"""Where each row is (`questions.jsonl:3`), and the row."""

_OWN = {"id", "prompt", "question", "system", "answer", "info"}


def jsonl_rows(path: Path, end: int | None = None) -> Rows:
    """The JSON objects of a file with one per line, up to byte `end`; blank lines are skipped."""
    with _open(path) as file:
        read = 0
        for number, line in enumerate(file, start=1):
            read += len(line.encode()) if end is not None else 0
            if end is not None and read > end:
                return
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise TasksetError(f"{where} is not JSON ({error}): {line[:80].rstrip()!r}") from None
            if not isinstance(row, dict):
                raise TasksetError(f"{where} is a {type(row).__name__}; expected a JSON object: {line[:80].rstrip()!r}")
            yield where, row


def csv_rows(path: Path) -> Rows:
    """The rows of a CSV file with a header."""
    import csv

    with _open(path) as file:
        reader = csv.DictReader(file)
        for row in reader:
            where = f"{path}:{reader.line_num}"
            # DictReader marks surplus cells with the key None and missing ones with the value None.
            if None in row or None in row.values():
                columns = ", ".join(reader.fieldnames or ())
                raise TasksetError(
                    f"{where} has more or fewer cells than the header ({columns}); quote cells with commas"
                )
            yield where, row


def parquet_rows(path: Path) -> Rows:
    """The rows of a Parquet file."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise TasksetError(f"cannot read {path} as Parquet: {error}") from None
    for index, row in enumerate(table.to_pylist()):
        yield f"{path}: row {index}", row


def task_of_row(row: Row, where: str, default_id: str) -> Task:
    """The task that a row with the usual columns describes.

    Raises:
        TasksetError: if it has no prompt, or one of another form.
    """
    given = [name for name in ("prompt", "question") if row.get(name) is not None]
    if len(given) != 1:
        raise TasksetError(f"{where} has {' and '.join(given) or 'no prompt'}; expected 'prompt' or 'question'")
    prompt = row[given[0]]
    messages: list[Message] = []
    if row.get("system") is not None:
        messages.append({"role": "system", "content": row["system"]})
    if isinstance(prompt, str) and prompt:
        messages.append({"role": "user", "content": prompt})
    elif isinstance(prompt, list) and prompt and all(isinstance(m, dict) and "role" in m for m in prompt):
        # Parquet fills the keys that a message does not have with None.
        messages.extend({k: v for k, v in m.items() if v is not None or k == "content"} for m in prompt)  # type: ignore[misc]
    else:
        raise TasksetError(f"{where}: '{given[0]}' is {prompt!r}; expected text or a list of messages with a 'role'")
    info = row.get("info") or {}
    if isinstance(info, str):  # from a table, whose cells hold text
        try:
            info = json.loads(info)
        except json.JSONDecodeError as error:
            raise TasksetError(f"{where}: 'info' is no JSON ({error}): {info[:80]!r}") from None
    if not isinstance(info, Mapping):
        raise TasksetError(f"{where}: 'info' is {info!r}; expected an object")
    further = {name: value for name, value in row.items() if name not in _OWN}
    return Task(str(row.get("id", default_id)), tuple(messages), row.get("answer"), {**info, **further})


def splits_of_files(
    path: str | Path | Mapping[str, str | Path],
    read: Callable[[Path], Rows],
    split_column: str | None,
    fractions: Mapping[str, float],
    row: Callable[[Row], Task] | None,
) -> Splits | Callable[[], Splits]:
    """The splits of one file, or of one file per split; nothing is read before they are used."""
    if isinstance(path, Mapping):
        if split_column is not None:
            raise ConfigError(f"split_column='{split_column}' is for a single file; found one file per split")
        return {name: partial(_tasks, Path(one), read, row) for name, one in path.items()}
    if split_column is not None:
        return partial(_by_column, Path(path), read, row, split_column)
    return Divided(partial(_tasks, Path(path), read, row), checked_fractions(fractions))


def checked_fractions(fractions: Mapping[str, float]) -> Mapping[str, float]:
    """The fractions.

    Raises:
        ConfigError: unless they are positive and sum to 1.
    """
    if not fractions or abs(sum(fractions.values()) - 1) > 1e-9 or min(fractions.values()) <= 0:
        raise ConfigError(f"fractions={dict(fractions)}; expected positive numbers that sum to 1")
    return fractions


def divide(tasks: list[Task], fractions: Mapping[str, float]) -> dict[str, list[Task]]:
    """Divides tasks by a hash of their ids; each split keeps the order of the file and gets at least one task.

    Raises:
        TasksetError: if there are fewer tasks than splits.
    """
    if len(tasks) < len(fractions):
        raise TasksetError(
            f"{len(tasks)} tasks cannot be divided into {len(fractions)} splits; name one split with 1.0"
        )
    order = sorted(range(len(tasks)), key=lambda i: rank(0, tasks[i].id))
    names, start, passed, divided = list(fractions), 0, 0.0, {}
    for left, name in zip(reversed(range(len(names))), names, strict=True):
        passed += fractions[name]
        end = min(max(round(passed * len(tasks)), start + 1), len(tasks) - left)
        divided[name] = [tasks[i] for i in sorted(order[start:end])]
        start = end
    return divided


class Divided(dict[str, Callable[[], list[Task]]]):
    """One file's tasks divided into splits whose names are known beforehand; the file is read once, on first use."""

    def __init__(self, read: Callable[[], list[Task]], fractions: Mapping[str, float]) -> None:
        super().__init__({name: partial(self._split, name) for name in fractions})
        self._read, self._fractions = read, fractions
        self._divided: dict[str, list[Task]] | None = None

    def _split(self, name: str) -> list[Task]:
        if self._divided is None:
            self._divided = divide(self._read(), self._fractions)
        return self._divided[name]


def _tasks(path: Path, read: Callable[[Path], Rows], make: Callable[[Row], Task] | None) -> list[Task]:
    return [make_task(where, row, make, f"{path.stem}-{i}") for i, (where, row) in enumerate(read(path))]


def _by_column(
    path: Path, read: Callable[[Path], Rows], make: Callable[[Row], Task] | None, column: str
) -> dict[str, list[Task]]:
    splits: dict[str, list[Task]] = {}
    for i, (where, row) in enumerate(read(path)):
        name = row.pop(column, None)
        if not isinstance(name, str) or not name:
            raise TasksetError(f"{where}: column '{column}' is {name!r}; expected the name of the row's split")
        splits.setdefault(name, []).append(make_task(where, row, make, f"{path.stem}-{i}"))
    return splits


def make_task(where: str, row: Row, make: Callable[[Row], Task] | None, default_id: str) -> Task:
    """The task of a row, made by the function `make` or by its usual columns.

    Raises:
        TasksetError: naming the row, for one that cannot be made into a task.
    """
    if make is None:
        return task_of_row(row, where, default_id)
    try:
        task = make(row)
    except Exception as error:
        raise TasksetError(f"{where}: making a task of {row!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise TasksetError(f"{where}: the row function returned {task!r}; expected a Task")
    return task


def _open(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise TasksetError(f"cannot read {path.absolute()}: {error.strerror}") from None
