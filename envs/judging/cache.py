"""Verdicts on disk: what was judged once is not paid for again."""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class VerdictCache:
    """Verdicts by the digest of everything that led to them. Several processes may share the file.

    Args:
        path: an SQLite file; made, with its folder, if it does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def get(self, key: str) -> dict[str, Any] | None:
        """The verdict under this key."""
        with self._open() as connection:
            row = connection.execute("select verdict from verdicts where key = ?", (key,)).fetchone()
        connection.close()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, verdict: Mapping[str, Any]) -> None:
        """Keeps a verdict."""
        with self._open() as connection:
            connection.execute("insert or replace into verdicts values (?, ?)", (key, json.dumps(verdict)))
        connection.close()

    def _open(self) -> sqlite3.Connection:
        # A connection per use: the cache outlives event loops and forks, and a judge takes a thousand times as long.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=30.0)
        connection.execute("create table if not exists verdicts (key text primary key, verdict text not null)")
        return connection


def digest(*parts: Any) -> str:
    """The key of a verdict: SHA-256 over the JSON of what led to it."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
