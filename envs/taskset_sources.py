"""Tasks from places other than text files: SQLite, Hugging Face data sets, and a journal that grows."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from envs.errors import ConfigError, TasksetError
from envs.record import whole_lines
from envs.taskset import Splits, Taskset, rank
from envs.taskset_files import Divided, Row, Rows, checked_fractions, jsonl_rows, make_task
from envs.types import Task


def sqlite_rows(path: Path, query: str) -> Rows:
    """The rows that a query finds in an SQLite file, which is opened for reading only."""
    if not path.is_file():
        raise TasksetError(f"cannot read {path.absolute()}: no such file")
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        cursor = connection.execute(query)
        names = [column[0] for column in cursor.description or ()]
        for index, values in enumerate(cursor):
            yield f"{path}: row {index}", dict(zip(names, values, strict=True))
    except sqlite3.Error as error:
        raise TasksetError(f"{path}: the query {query!r} failed: {error}") from None
    finally:
        connection.close()


def hugging_face_splits(
    name: str,
    config: str | None,
    revision: str | None,
    splits: Mapping[str, str] | None,
    fractions: Mapping[str, float],
    row: Callable[[Row], Task] | None,
) -> Splits | Callable[[], Splits]:
    """The splits of a data set on the Hugging Face Hub, or of one saved in a folder."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise ConfigError(
            f"Taskset.from_hf('{name}') needs the package datasets, which is not installed; "
            "pip install 'upswing[datasets]'"
        ) from None

    def rows(source: str) -> Rows:
        try:
            if Path(name).is_dir() and (Path(name) / "dataset_dict.json").is_file():
                data = datasets.load_from_disk(name)[source]
            else:
                data = datasets.load_dataset(name, config, split=source, revision=revision)
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
            raise TasksetError(f"cannot load split '{source}' of {name}: {type(error).__name__}: {error}") from error
        for index, each in enumerate(data):
            yield f"{name}[{source}]: row {index}", dict(each)

    stem = name.rstrip("/").rsplit("/", 1)[-1]

    def tasks(source: str) -> list[Task]:
        return [make_task(where, each, row, f"{stem}-{source}-{i}") for i, (where, each) in enumerate(rows(source))]

    if splits is not None:
        return {ours: partial(tasks, theirs) for ours, theirs in splits.items()}
    return Divided(partial(tasks, "train"), checked_fractions(fractions))


class GrowingTaskset(Taskset):
    """The tasks of a journal as it stood when they were first looked at; `grown` is how it stands now.

    What was a task's index within its split stays its index, however long the journal gets.
    """

    def __init__(self, path: Path, fractions: Mapping[str, float], row: Callable[[Row], Task] | None) -> None:
        self._path, self._fractions, self._row = path, fractions, row
        super().__init__(partial(journal_splits, path, checked_fractions(fractions), row))

    def grown(self) -> GrowingTaskset:
        """The tasks that are in the journal now: the same ones, and those that came after them."""
        return GrowingTaskset(self._path, self._fractions, self._row)


def journal_splits(path: Path, fractions: Mapping[str, float], row: Callable[[Row], Task] | None) -> Splits:
    """The tasks of a journal by split. A last line that is still being written is left for the next time."""
    divided: dict[str, list[Task]] = {name: [] for name in fractions}
    for i, (where, each) in enumerate(_whole_rows(path)):
        task = make_task(where, each, row, f"{path.stem}-{i}")
        divided[split_of(task.id, fractions)].append(task)
    empty = [name for name, tasks in divided.items() if not tasks]
    if empty:
        raise TasksetError(
            f"{path} has no task yet for split '{empty[0]}'; append more, or name one split: fractions={{'train': 1.0}}"
        )
    return divided


def split_of(id: str, fractions: Mapping[str, float]) -> str:
    """The split of a task, by a hash of its id alone."""
    at, passed = int.from_bytes(rank(0, id)[:7], "big") / 2**56, 0.0
    for name, share in fractions.items():
        passed += share
        if at < passed:
            return name
    return list(fractions)[-1]


class TaskJournal:
    """Adds tasks to a journal, one JSON line each, in a single write: readers never see half of one.

    Args:
        path: the file; made, with its folder, if it does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, task: Task) -> None:
        """Adds a task."""
        line = (json.dumps(task.to_dict(), separators=(",", ":")) + "\n").encode()
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            whole = whole_lines(file)
            if whole != os.fstat(file).st_size:
                os.ftruncate(file, whole)  # a writer was killed in the middle of its line
            if os.write(file, line) != len(line):
                os.ftruncate(file, whole)
                raise OSError(f"{self.path}: a task could not be written whole; is the disk full?")
        finally:
            os.close(file)


def _whole_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with path.open("rb") as file:
            end = whole_lines(file.fileno())
    except OSError as error:
        raise TasksetError(f"cannot read {path.absolute()}: {error.strerror}") from None
    return jsonl_rows(path, end)
