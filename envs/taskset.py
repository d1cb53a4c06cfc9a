"""Tasks as a deterministic random-access sequence with named splits, built on first use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from envs.errors import ConfigError, TasksetError, unknown_name
from envs.types import Task

if TYPE_CHECKING:
    from envs.taskset_sources import GrowingTaskset

Source = Sequence[Task] | Callable[[], Iterable[Task]]
"""Where the tasks of one split come from; a callable is called once, when the split is first used."""

Splits = Mapping[str, Source]

NINE_TO_ONE: Mapping[str, float] = {"train": 0.9, "eval": 0.1}


class Taskset(Sequence[Task]):
    """The problems of an environment.

    `taskset["…"]` does not exist: `taskset.split("train")` is the taskset with that split alone, and `len`, indexing
    and iteration run over the splits in the order they were given. `head`, `shuffle` and `select` work on each split
    by itself, so that splits survive them. A split's tasks are built when first looked at, and checked then: ids are
    unique across all splits built so far, and no split is empty.

        Taskset({"train": make_train, "eval": make_eval}).split("train").shuffle(seed=0).head(100)

    Args:
        splits: for each split its tasks, or a callable that makes them; or a callable that returns this mapping, for
            sources that must be read to know their splits.
    """

    def __init__(self, splits: Splits | Callable[[], Splits]) -> None:
        self._source = splits
        self._sources: Splits | None = None
        self._built: dict[str, tuple[Task, ...]] = {}
        self._homes: dict[str, str] = {}  # task id -> split, to find ids that occur in two
        self._reserved: frozenset[str] = frozenset()

    @classmethod
    def from_function(cls, fn: Callable[[str], Iterable[Task]], splits: Sequence[str] = ("train", "eval")) -> Taskset:
        """Tasks from a function that makes the split it is given the name of; it must always make the same ones."""
        return cls({name: partial(fn, name) for name in splits})

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path | Mapping[str, str | Path],
        *,
        split_column: str | None = None,
        fractions: Mapping[str, float] = NINE_TO_ONE,
        row: Callable[[dict[str, Any]], Task] | None = None,
    ) -> Taskset:
        """Tasks from a file with one JSON object per line.

        Args:
            path: the file, or one file per split.
            split_column: for a single file, the column that names each row's split.
            fractions: for a single file without such a column, how much of it each split gets, summing to 1. Which
                rows go where is decided by a hash of their ids; each split gets at least one.
            row: makes a task of a row. By default the columns are `prompt` (text or messages) or `question`, an
                optional `system` message, `answer`, `id` (else the file's name and the row's number) and `info`;
                further columns join `info`.

        Raises:
            TasksetError: on first use, naming file and line, for a file that cannot be read or a malformed row.
        """
        from envs.taskset_files import jsonl_rows, splits_of_files

        return cls(splits_of_files(path, jsonl_rows, split_column, fractions, row))

    @classmethod
    def from_csv(
        cls,
        path: str | Path | Mapping[str, str | Path],
        *,
        split_column: str | None = None,
        fractions: Mapping[str, float] = NINE_TO_ONE,
        row: Callable[[dict[str, Any]], Task] | None = None,
    ) -> Taskset:
        """Tasks from a CSV file with a header; every value is text. Arguments as for `from_jsonl`."""
        from envs.taskset_files import csv_rows, splits_of_files

        return cls(splits_of_files(path, csv_rows, split_column, fractions, row))

    @classmethod
    def from_parquet(
        cls,
        path: str | Path | Mapping[str, str | Path],
        *,
        split_column: str | None = None,
        fractions: Mapping[str, float] = NINE_TO_ONE,
        row: Callable[[dict[str, Any]], Task] | None = None,
    ) -> Taskset:
        """Tasks from a Parquet file. Arguments as for `from_jsonl`."""
        from envs.taskset_files import parquet_rows, splits_of_files

        return cls(splits_of_files(path, parquet_rows, split_column, fractions, row))

    @classmethod
    def from_sqlite(
        cls,
        path: str | Path | Mapping[str, str | Path],
        query: str,
        *,
        split_column: str | None = None,
        fractions: Mapping[str, float] = NINE_TO_ONE,
        row: Callable[[dict[str, Any]], Task] | None = None,
    ) -> Taskset:
        """Tasks from the rows of a query, like "select id, question, answer from questions order by id".

        Args:
            path: the SQLite file, which is only read.
            query: without an `order by`, ids that come from the row's number may change.

        Other arguments and errors as for `from_jsonl`.
        """
        from envs.taskset_files import splits_of_files
        from envs.taskset_sources import sqlite_rows

        return cls(splits_of_files(path, partial(sqlite_rows, query=query), split_column, fractions, row))

    @classmethod
    def from_hf(
        cls,
        name: str,
        config: str | None = None,
        *,
        splits: Mapping[str, str] | None = None,
        fractions: Mapping[str, float] = NINE_TO_ONE,
        revision: str | None = None,
        row: Callable[[dict[str, Any]], Task] | None = None,
    ) -> Taskset:
        """Tasks from a Hugging Face data set (the package `datasets` is an extra).

            Taskset.from_hf("openai/gsm8k", "main", splits={"train": "train", "eval": "test"}, row=...)

        Args:
            name: on the Hub, or a folder that `datasets` can load.
            config: of the data set, for those that have several.
            splits: our splits and theirs; without it, their "train" is divided by `fractions`.
            revision: a commit, so that the tasks stay the same.

        Other arguments and errors as for `from_jsonl`.
        """
        from envs.taskset_sources import hugging_face_splits

        return cls(hugging_face_splits(name, config, revision, splits, fractions, row))

    @classmethod
    def from_journal(
        cls,
        path: str | Path,
        *,
        fractions: Mapping[str, float] = NINE_TO_ONE,
        row: Callable[[dict[str, Any]], Task] | None = None,
    ) -> GrowingTaskset:
        """Tasks from a file that grows: JSON lines as for `from_jsonl`, appended by `TaskJournal` or anyone else.

        A task's split is decided by its id alone, so that it keeps its split and its index when more come. `grown()`
        of what this returns has the tasks that have come since.
        """
        from envs.taskset_sources import GrowingTaskset

        return GrowingTaskset(Path(path), fractions, row)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in order."""
        return tuple(self._named_sources())

    def split(self, name: str) -> Taskset:
        """The taskset with this split alone.

        Raises:
            ConfigError: if there is no such split.
        """
        if name not in self._named_sources():
            raise unknown_name("split", name, self.splits)
        return self._derive([name], lambda tasks: tasks, "")

    def head(self, n: int) -> Taskset:
        """The first `n` tasks of each split (all of a split that has fewer)."""
        if n < 1:
            raise ConfigError(f"head({n}): expected at least 1 task")
        return self._derive(None, lambda tasks: tasks[:n], "")

    def shuffle(self, seed: int) -> Taskset:
        """Each split in an order that depends on the seed and the task ids alone."""
        return self._derive(None, lambda tasks: sorted(tasks, key=lambda task: rank(seed, task.id)), "")

    def select(self, predicate: Callable[[Task], bool]) -> Taskset:
        """The tasks for which `predicate` holds."""
        return self._derive(None, lambda tasks: [task for task in tasks if predicate(task)], "select() kept none: ")

    def evaluation_only(self, *splits: str) -> Taskset:
        """The same tasks, of which those of `splits` refuse to be trained on, here and in all that is made of it."""
        same = self._derive(None, lambda tasks: tasks, "")
        same._reserved |= set(splits)
        return same

    @property
    def reserved(self) -> frozenset[str]:
        """The splits that are for evaluation only.

        Raises:
            ConfigError: if `evaluation_only` named a split that there is not.
        """
        for name in sorted(self._reserved):
            if name not in self.splits:
                raise unknown_name("split", name, self.splits, "evaluation_only(…) names splits of the taskset")
        return self._reserved

    def __len__(self) -> int:
        return sum(len(self._tasks(name)) for name in self.splits)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Task, ...]: ...
    def __getitem__(self, index: int | slice) -> Task | tuple[Task, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        names = self.splits
        if len(names) == 1:
            return self._tasks(names[0])[index]
        length = len(self)
        position = index + length if index < 0 else index
        if not 0 <= position < length:
            raise IndexError(f"task {index} of a taskset with {length}")
        for name in names:
            tasks = self._tasks(name)
            if position < len(tasks):
                return tasks[position]
            position -= len(tasks)
        raise AssertionError("the position lies within the length")

    def __iter__(self) -> Iterator[Task]:
        for name in self.splits:
            yield from self._tasks(name)

    def __repr__(self) -> str:
        if self._sources is None and callable(self._source):
            return "Taskset(not built)"
        sizes = (f"{name}: {len(self._built[name]) if name in self._built else 'not built'}" for name in self.splits)
        return f"Taskset({', '.join(sizes)})"

    def _named_sources(self) -> Splits:
        if self._sources is None:
            sources = self._source() if callable(self._source) else self._source
            if not sources:
                raise TasksetError("a taskset needs at least one split, found none; name one like {'train': tasks}")
            self._sources = sources
        return self._sources

    def _tasks(self, name: str) -> tuple[Task, ...]:
        if name not in self._built:
            source = self._named_sources()[name]
            tasks = tuple(source() if callable(source) else source)
            check(tasks, name, self._homes)
            self._built[name] = tasks
        return self._built[name]

    def _derive(
        self, names: Sequence[str] | None, change: Callable[[Sequence[Task]], Sequence[Task]], problem: str
    ) -> Taskset:
        def source(name: str) -> Callable[[], Sequence[Task]]:
            def build() -> Sequence[Task]:
                tasks = change(self._tasks(name))
                if not tasks:
                    raise TasksetError(f"{problem}split '{name}' of {len(self._tasks(name))} tasks became empty")
                return tasks

            return build

        if names is None and self._sources is None and callable(self._source):
            derived = Taskset(lambda: {name: source(name) for name in self.splits})
        else:
            derived = Taskset({name: source(name) for name in (names or self.splits)})
        derived._reserved = self._reserved if names is None else self._reserved & set(names)
        return derived


def check(tasks: Sequence[Task], split: str, homes: dict[str, str]) -> None:
    """Checks the tasks of one split and enters their ids into `homes` (id -> split).

    Raises:
        TasksetError: an empty split, something that is no task, a task without a prompt, an id used twice.
    """
    if not tasks:
        raise TasksetError(f"split '{split}' is empty; expected at least one task")
    added: dict[str, str] = {}
    for index, task in enumerate(tasks):
        where = f"task {index} of split '{split}'"
        if not isinstance(task, Task):
            raise TasksetError(f"{where} is {task!r} ({type(task).__name__}); expected a Task")
        if not isinstance(task.id, str) or not task.id:
            raise TasksetError(f"{where} has the id {task.id!r}; expected a non-empty text")
        if not task.prompt or not all(isinstance(message, Mapping) and "role" in message for message in task.prompt):
            raise TasksetError(
                f"{where} ('{task.id}') has the prompt {task.prompt!r}; "
                "expected at least one message like {'role': 'user', 'content': '…'}"
            )
        home = added.get(task.id) or homes.get(task.id)
        if home is not None:
            also = "twice" if home == split else f"in split '{home}' too"
            raise TasksetError(f"{where} has the id '{task.id}', which occurs {also}; expected every id once")
        added[task.id] = split
    homes.update(added)


def rank(seed: int, id: str) -> bytes:
    """Where the task `id` comes in the order that `seed` stands for."""
    return hashlib.sha256(f"{seed}:{id}".encode()).digest()
