"""Answer questions about Unicode's characters with a query; its rows are compared with those of the right one.

The tables are made of what Python itself brings along. Queries run in a copy of the database that is thrown away, may
only read, and end after so many steps.
"""

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from envs import Environment, Message, Rubric, Task, Taskset, TasksetError, derive_seed, single_turn
from envs.parsers import code_block

from .questions import SCHEMA, asked
from .tables import QueryError, Row, database, rows, same


def load_environment(train_tasks: int = 1000, eval_tasks: int = 256, seed: int = 0) -> Environment:
    """Questions about three tables, answered with SQL.

    Args:
        train_tasks: tasks to train on.
        eval_tasks: tasks to evaluate on.
        seed: decides which questions are asked; none is ever in both splits.
    """
    counts = {"train": train_tasks, "eval": eval_tasks}
    return Environment(
        tasks=Taskset.from_function(lambda split: tasks(split, counts[split], seed)),
        harness=single_turn(),
        rubric=Rubric({right_rows: 1.0, runs: 0.0}),
        demonstrate=demonstrate,
    )


def tasks(split: str, count: int, seed: int) -> list[Task]:
    """Questions of a split, each once, that have an answer of at most 40 rows that no guess hits."""
    draw = random.Random(derive_seed(seed, split))
    found: dict[str, Task] = {}
    answers: Counter[str] = Counter()
    digest = hashlib.sha256(database()).hexdigest()[:12]
    missed = 0
    while len(found) < count:
        question, query = asked(draw)
        missed += 1
        if missed > 2000:
            raise TasksetError(f"there are {len(found)} questions for split '{split}', not {count}; ask for fewer")
        if split_of(question) != split or question in found:
            continue
        answer = right(query)
        known = answers[str(answer)] > count // 50
        if known or not 0 < len(answer) <= 40 or answer in ([(0,)], [(1,)]) or any(None in row for row in answer):
            continue
        found[question] = Task.ask(f"{split}-{len(found)}", question, query, system=SCHEMA, database=digest)
        answers[str(answer)] += 1
        missed = 0
    return list(found.values())


@lru_cache(10_000)
def right(query: str) -> list[Row]:
    """What a query of our own finds."""
    return rows(query)


def split_of(question: str) -> str:
    """A fifth of all questions is for evaluation, whatever the arguments."""
    return "eval" if derive_seed("split", question) % 5 == 0 else "train"


async def right_rows(completion: str, answer: str) -> float:
    """1 if the query gives the rows of the right query, in its order if that has one; else 0."""
    query = code_block("sql")(completion)
    if query is None:
        return 0.0
    expected = await asyncio.to_thread(right, answer)
    try:
        found = await asyncio.to_thread(rows, query)
    except QueryError:
        return 0.0
    return float(same(found, expected, ordered="order by" in answer))


async def runs(completion: str) -> float:
    """1 if there is a query that may run, and ends."""
    query = code_block("sql")(completion)
    try:
        await asyncio.to_thread(rows, query or "")
    except QueryError:
        return 0.0
    return 1.0


def demonstrate(task: Task, sample: int) -> Sequence[Message]:
    """Somebody who knows the query."""
    return [{"role": "assistant", "content": f"```sql\n{task.answer}\n```"}]
