"""The database, and how a query that nobody has read is run on it."""

import html.entities
import sqlite3
import time
import unicodedata
from functools import cache
from itertools import count

Row = tuple[object, ...]

RANGE = range(0x20, 0x2C00)
"""The characters in the table: all of the scripts and symbols up to Glagolitic."""
MAJOR = {"L": "letter", "M": "mark", "N": "number", "P": "punctuation", "S": "symbol", "Z": "separator", "C": "other"}
CATEGORIES = {
    "Lu": "uppercase letter", "Ll": "lowercase letter", "Lt": "titlecase letter", "Lm": "modifier letter",
    "Lo": "other letter", "Mn": "nonspacing mark", "Mc": "spacing mark", "Me": "enclosing mark",
    "Nd": "decimal number", "Nl": "letter number", "No": "other number", "Pc": "connector punctuation",
    "Pd": "dash punctuation", "Ps": "open punctuation", "Pe": "close punctuation", "Pi": "initial punctuation",
    "Pf": "final punctuation", "Po": "other punctuation", "Sm": "math symbol", "Sc": "currency symbol",
    "Sk": "modifier symbol", "So": "other symbol", "Zs": "space separator", "Zl": "line separator",
    "Zp": "paragraph separator", "Cf": "format character",
}  # fmt: skip
TABLES = {
    "characters": "code integer primary key, name text, script text, category text, direction text, mirrored integer, "
    "value real, lower integer",
    "categories": "category text primary key, meaning text, major text",
    "entities": "entity text primary key, code integer",
}

STEPS = 5_000_000
"""What a query may take, in instructions of SQLite's virtual machine; a scan of `characters` takes about 50,000."""
ROWS = 20_000
SECONDS = 20.0
"""And in time, for what makes single instructions slow."""
_EVERY = 1000
_FUNCTIONS = {
    *("abs", "avg", "cast", "char", "coalesce", "concat", "count", "cume_dist", "dense_rank", "first_value", "glob"),
    *("group_concat", "hex", "ifnull", "iif", "instr", "lag", "last_value", "lead", "length", "like", "lower", "ltrim"),
    *("max", "min", "nth_value", "ntile", "nullif", "percent_rank", "rank", "replace", "round", "row_number", "rtrim"),
    *("sign", "string_agg", "substr", "substring", "sum", "total", "trim", "typeof", "unicode", "upper"),
}
"""What a query may call. printf, for one, takes minutes in a single instruction."""
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 10_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 10_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 20,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}


class QueryError(Exception):
    """A query that is wrong, does more than read, or takes too long: the model's doing."""


@cache
def database() -> bytes:
    """The tables as an SQLite file; the same ones for the same version of Python."""
    connection = sqlite3.connect(":memory:")
    for name, columns in TABLES.items():
        connection.execute(f"create table {name} ({columns})")
    connection.executemany("insert into characters values (?, ?, ?, ?, ?, ?, ?, ?)", map(_character, _codes()))
    connection.executemany(
        "insert into categories values (?, ?, ?)", [(c, m, MAJOR[c[0]]) for c, m in CATEGORIES.items()]
    )
    named = (
        (entity.removesuffix(";"), text) for entity, text in sorted(html.entities.html5.items()) if entity[-1] == ";"
    )
    known = set(_codes())
    entities = [(entity, ord(text)) for entity, text in named if len(text) == 1 and ord(text) in known]
    connection.executemany("insert into entities values (?, ?)", entities)
    connection.execute("create index scripts on characters (script)")
    connection.execute("create index codes on entities (code)")
    connection.commit()
    made = connection.serialize()
    connection.close()
    return made


def _codes() -> list[int]:
    return [code for code in RANGE if unicodedata.name(chr(code), "")]


def _character(code: int) -> Row:
    char = chr(code)
    name, lower = unicodedata.name(char), char.lower()
    direction, mirrored = unicodedata.bidirectional(char), unicodedata.mirrored(char)
    has_lower = lower != char and len(lower) == 1
    value = unicodedata.numeric(char, None)
    script = name.split()[0]
    return code, name, script, unicodedata.category(char), direction, mirrored, value, ord(lower) if has_lower else None


def rows(query: str) -> list[Row]:
    """What a query finds, in a copy of the database of its own.

    Raises:
        QueryError: for anything but one SELECT over the three tables, for one that is wrong, takes more than `STEPS`
            or `SECONDS`, or finds more than `ROWS`.
    """
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(database())
        for kind, most in _LIMITS.items():
            connection.setlimit(kind, most)
        connection.set_authorizer(_may)
        taken, end = count(1), time.monotonic() + SECONDS
        connection.set_progress_handler(lambda: next(taken) * _EVERY > STEPS or time.monotonic() > end, _EVERY)
        cursor = connection.execute(query)
        if cursor.description is None:
            raise QueryError("it gives no rows; expected a SELECT")
        found = cursor.fetchmany(ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:  # ValueError: what UTF-8 cannot hold
        raise QueryError(str(error)) from None
    finally:
        connection.close()
    if len(found) > ROWS:
        raise QueryError(f"it finds more than {ROWS} rows")
    return found


def _may(action: int, first: str | None, second: str | None, schema: str | None, trigger: str | None) -> int:
    allowed = (
        action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE)
        or (action == sqlite3.SQLITE_READ and first in TABLES)
        or (action == sqlite3.SQLITE_FUNCTION and second in _FUNCTIONS)
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def same(found: list[Row], expected: list[Row], *, ordered: bool) -> bool:
    """Are the rows the same, up to rounding, and up to their order unless that was asked for?"""
    one, other = ([tuple(map(_plain, row)) for row in each] for each in (found, expected))
    return one == other if ordered else sorted(one) == sorted(other)


def _plain(value: object) -> tuple[str, str]:
    if isinstance(value, int | float):
        return "number", f"{value + 0.0:.9g}"
    return type(value).__name__, str(value)
