"""A corpus in one SQLite file: built once, then only read, by as many threads and processes as like to."""

import hashlib
import json
import os
import re
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path

from envs import ConfigError

from .pages import Page
from .questions import Question

_TABLES = """
create table meta (key text primary key, value text);
create table sections (page text, number integer, title text, text text, primary key (page, title)) without rowid;
create table questions (record text);
create virtual table pages using fts5 (title, body, tokenize = "porter unicode61");
"""
# Words that stand on most pages cost time and tell nothing.
_EMPTY = {"a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "how", "in", "is", "it", "of", "on", "or"}
_EMPTY |= {"that", "the", "this", "to", "was", "what", "when", "which", "with"}
_MOST_WORDS = 24


class Index:
    """Search and look-up in a corpus. A look-up takes less than a millisecond, a search up to twenty.

    Attributes:
        path: the SQLite file.
        digest: SHA-256 of all pages: equal digests mean equal corpora.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}
        self.digest: str = self._rows("select value from meta where key = 'digest'")[0][0]

    def search(self, query: str, most: int) -> list[str]:
        """The titles of the pages that fit best: the one that is the query, then those with rare words of the query, in
        the title before the text."""
        words = [word for word in re.findall(r"\w+", query) if word.lower() not in _EMPTY][:_MOST_WORDS]
        if not words:
            return []
        wanted = " or ".join(f'"{word}"' for word in words).replace(" or ", " OR ")
        best = "title = ? collate nocase desc, bm25(pages, 10.0, 1.0), title"
        ranked = f"select title from pages where pages match ? order by {best} limit ?"
        return [title for (title,) in self._rows(ranked, wanted, query.strip(), most)]

    def sections(self, page: str) -> list[str]:
        """The section titles of a page, in order; empty if there is no such page."""
        rows = self._rows("select title from sections where page = ? order by number", page)
        return [title for (title,) in rows]

    def read(self, page: str, section: str) -> str | None:
        """The text of a section; None if there is no such page or section."""
        rows = self._rows("select text from sections where page = ? and title = ?", page, section)
        return rows[0][0] if rows else None

    def questions(self) -> list[Question]:
        """The questions about the corpus that were made with it."""
        found = (json.loads(record) for (record,) in self._rows("select record from questions order by rowid"))
        return [Question(*record)._replace(words=tuple(record[-1])) for record in found]

    def _rows(self, query: str, *values: object) -> list[tuple[str, ...]]:
        # A connection serves one thread, and none outlives a fork.
        who = (os.getpid(), threading.get_ident())
        if who not in self._connections:
            self._connections = {key: value for key, value in self._connections.items() if key[0] == who[0]}
            # "immutable": nobody writes to a finished index, so nobody has to lock it.
            uri = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
            self._connections[who] = sqlite3.connect(uri, uri=True, check_same_thread=False)
        return self._connections[who].execute(query, values).fetchall()


def open_index(key: str, make: Callable[[], tuple[Sequence[Page], Sequence[Question]]]) -> Index:
    """The index that `key` stands for, built if there is none yet.

    It is kept in `$XDG_CACHE_HOME/upswing/wiki_search` (by default in `~/.cache`), and appears there only when it is
    complete: several processes may build it at the same time.

    Args:
        key: all that the corpus depends on.
        make: reads the corpus.

    Raises:
        ConfigError: if the folder cannot be written, or SQLite lacks FTS5.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upswing" / "wiki_search"
    path = folder / f"{hashlib.sha256((_own_code() + key).encode()).hexdigest()[:32]}.sqlite"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as unfinished:
                made = Path(unfinished, "index.sqlite")
                _build(made, *make())
                made.replace(path)
        except OSError as error:
            raise ConfigError(
                f"cannot keep the index in {folder}: {error}; set XDG_CACHE_HOME to a folder of yours"
            ) from error
    return Index(path)


def _own_code() -> str:
    """What decides how a corpus is read and asked about."""
    sources = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(b"\0".join(sources)).hexdigest()


def _build(path: Path, pages: Sequence[Page], questions: Iterable[Question]) -> None:
    digest = hashlib.sha256(json.dumps(pages).encode()).hexdigest()
    with closing(sqlite3.connect(path)) as database, database:
        try:
            database.executescript(_TABLES)
        except sqlite3.OperationalError as error:
            raise ConfigError(f"this Python's SQLite cannot index text ({error}); it needs FTS5") from None
        database.execute("insert into meta values ('digest', ?)", (digest,))
        database.executemany("insert into questions values (?)", ((json.dumps(question),) for question in questions))
        for page in pages:
            numbered = [(page.title, number, *section) for number, section in enumerate(page.sections)]
            database.executemany("insert into sections values (?, ?, ?, ?)", numbered)
            body = "\n\n".join(f"{section.title}\n{section.text}" for section in page.sections)
            database.execute("insert into pages values (?, ?)", (page.title, body))
        database.execute("insert into pages(pages) values ('optimize')")
