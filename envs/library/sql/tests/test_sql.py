"""What may run, what counts, and what is asked, in `sql`."""

from collections import Counter

import pytest

from envs import ScriptedClient, Trajectory, load_environment, run_task
from envs.types import Task

ENVIRONMENT = load_environment("sql", train_tasks=120, eval_tasks=64)


def task(answer: str) -> Task:
    return Task.ask("a", "?", answer)


async def say(answer: str, text: str) -> Trajectory:
    record = await run_task(ENVIRONMENT, task(answer), ScriptedClient([text]))
    assert record.failure is None, record.failure
    return record


LETTERS = "select script, count(*) from characters where category = 'Lu' group by script"
LOW = "select code from characters where code < 40"


@pytest.mark.parametrize(
    ("right", "said", "reward"),
    [
        (LETTERS, "SELECT script AS s, SUM(1.0) FROM characters WHERE category='Lu' GROUP BY s ORDER BY 2 DESC;", 1.0),
        (LETTERS, "select count(*), script from characters where category = 'Lu' group by script", 0.0),
        (LETTERS, "select script, count(*) from characters group by script", 0.0),
        (LOW, "select code from characters where code < 40 order by code desc", 1.0),
        (LOW, "select code from characters where code < 40 union all select 32", 0.0),
        (LOW, "with recursive n(x) as (select 32 union all select x + 1 from n where x < 39) select x from n", 1.0),
        (f"{LOW} order by code", "select code from characters where code < 40 order by code desc", 0.0),
        ("select 2.0 / 3", "select 0.66666666667", 1.0),
        ("select 2.0 / 3", "select 0.6667", 0.0),
        ("select null", "select 'None'", 0.0),
        ("select 1", "select '1'", 0.0),
    ],
)
async def test_rows_count_and_their_order_where_it_was_asked_for(right: str, said: str, reward: float) -> None:
    record = await say(right, f"Let us see:\n```sql\n{said}\n```")
    assert (record.reward, record.metrics["runs"]) == (reward, 1.0)


HOSTILE = {
    "opens a file": "attach database '/tmp/upswing-sql-test.db' as other",
    "changes how it runs": "pragma writable_schema = 1",
    "asks a pragma as a table": "select * from pragma_database_list",
    "reads what is behind the tables": "select sql from sqlite_master",
    "never ends": "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n",
    "ends after a day": "select count(*) from characters a, characters b, characters c, characters d",
    "finds a hundred million rows": "select a.code from characters a, characters b",
    "sorts a hundred million rows": "select a.name || b.name from characters a, characters b order by 1 limit 1",
    "fills the memory": "select hex(zeroblob(1000000000))",
    "prints a long text": "select printf('%.*c', 1000000000, 'x')",
    "writes": "update characters set name = 'x'",
    "writes with rows": "delete from characters returning *",
    "writes behind a with": "with x as (select 1) insert into categories select 'x', 'y', 'z'",
    "makes a table": "create table answers (x)",
    "loads code": "select load_extension('/tmp/x.so')",
    "writes the file elsewhere": "vacuum into '/tmp/upswing-sql-test.db'",
    "says two things": "select 32; drop table characters",
    "guesses": "select random()",
    "is nested deeply": f"select {'(' * 3000}1{')' * 3000}",
    "is no text that UTF-8 holds": "select '\ud800'",
    "holds a zero": "select '\0'",
    "is nothing": "",
    "is a comment": "-- nothing",
}


@pytest.mark.parametrize("way", HOSTILE)
async def test_what_does_more_than_read_or_takes_too_long_earns_nothing(way: str) -> None:
    record = await say(LOW, f"```sql\n{HOSTILE[way]}\n```")
    assert (record.reward, record.metrics["runs"]) == (0.0, 0.0)
    assert (await say(LOW, f"```sql\n{LOW}\n```")).reward == 1.0, "and the next query finds all as it was"


@pytest.mark.parametrize("said", ["", LOW, f"```python\n{LOW}\n```"])
async def test_a_query_outside_its_block_is_none(said: str) -> None:
    assert (await say(LOW, said)).reward == 0.0


def test_every_task_tells_its_tables_and_their_digest() -> None:
    assert all("characters(code, name, script" in str(task.prompt[0]["content"]) for task in ENVIRONMENT.tasks)
    (digest,) = {task.info["database"] for task in ENVIRONMENT.tasks}
    assert len(digest) == 12


async def test_the_letter_a_is_there() -> None:
    alpha = "select name, category, lower, entity from characters left join entities using (code) where code = 913"
    values = "values ('GREEK CAPITAL LETTER ALPHA', 'Lu', 945, 'Alpha')"
    assert (await say(alpha, f"```sql\n{values}\n```")).reward == 1.0


def test_no_question_is_in_two_splits_and_no_answer_is_frequent() -> None:
    train, held_out = ({str(t.prompt[-1]["content"]) for t in ENVIRONMENT.tasks.split(s)} for s in ("train", "eval"))
    assert len(train) == 120 and len(held_out) == 64 and train.isdisjoint(held_out)
    other = load_environment("sql", train_tasks=1, seed=3).tasks.split("eval")
    assert train.isdisjoint(str(t.prompt[-1]["content"]) for t in other), "whatever the seed"
    kinds = Counter(" ".join(question.split()[:3]) for question in train)
    assert len(kinds) >= 8 and max(kinds.values()) < 40
