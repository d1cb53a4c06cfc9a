"""Answer a question about a library by searching its catalogue, which is an MCP server.

The server runs in this process, one for each rollout, with two tools: a search that gives numbers of records, and a
look into a record. The catalogue is made up, so that nothing but looking gives the answer.
"""

import random
import re
from functools import cache

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from envs import Environment, MCPTools, Message, Rubric, Task, Taskset, derive_seed, tool_use
from envs.clients.scripted import tool_call

ADJECTIVES = ("Silent", "Golden", "Broken", "Distant", "Hidden", "Winter", "Burning", "Gentle", "Iron", "Last")
NOUNS = ("Harbour", "Orchard", "Mirror", "Lantern", "Bridge", "Garden", "Tower", "River", "Letter", "Compass")
AUTHORS = ("A. Brandt", "C. Duarte", "E. Falk", "G. Haddad", "I. Jansen", "K. Lindqvist", "M. Novak", "O. Petit")
SYSTEM = "Use the tools to look it up. Answer with the year and nothing else."

Record = dict[str, str | int]


def load_environment(
    books: int = 400, train_tasks: int = 256, eval_tasks: int = 96, max_turns: int = 6, seed: int = 0
) -> Environment:
    """Questions about one of the books of a made-up library.

    Args:
        books: how many the library has; train and eval ask about different ones.
        train_tasks: at most this many tasks to train on.
        eval_tasks: at most this many tasks to evaluate on; a quarter of the books is asked about there.
        max_turns: the most answers of the model.
        seed: decides the library.
    """
    most = {"train": train_tasks, "eval": eval_tasks}

    def tasks(split: str) -> list[Task]:
        chosen = [n for n in range(books) if (n % 4 == 0) == (split == "eval")]
        return [question(n, library(books, seed)[n]) for n in chosen[: most[split]]]

    return Environment(
        tasks=Taskset.from_function(tasks),
        harness=tool_use([MCPTools(lambda: make_server(books, seed), shared=False)], max_turns=max_turns),
        rubric=Rubric({right_year: 1.0, lookups: 0.0}),
        demonstrate=demonstrate,
    )


@cache
def library(books: int, seed: int) -> tuple[Record, ...]:
    """The records. Titles come several times, title and author together only once."""
    draw = random.Random(derive_seed(seed, "library"))
    pairs = [(f"The {a} {n}", author) for a in ADJECTIVES for n in NOUNS for author in AUTHORS]
    years = range(1900, 2000)
    return tuple(
        {"title": title, "author": author, "printed": draw.choice(years), "lent": draw.choice(years)}
        for title, author in draw.sample(pairs, books)
    )


def question(number: int, record: Record) -> Task:
    asked = f'In which year was "{record["title"]}" by {record["author"]} lent for the last time?'
    return Task.ask(f"book-{number}", asked, str(record["lent"]), system=SYSTEM, record=number, title=record["title"])


def make_server(books: int, seed: int) -> MCPServer:
    """The catalogue: a search and a look into a record."""
    server = MCPServer("catalogue")
    records = library(books, seed)

    @server.tool()
    def search(words: str) -> list[int]:
        """Finds records whose title has all these words. Gives their numbers."""
        wanted = words.lower().split()
        return [n for n, record in enumerate(records) if set(wanted) <= set(str(record["title"]).lower().split())]

    @server.tool()
    def look(number: int) -> Record:
        """Shows the record with a number."""
        if not 0 <= number < len(records):
            raise ToolError(f"there is no record {number}; they are numbered from 0 to {len(records) - 1}")
        return records[number]

    return server


def right_year(completion: str, answer: str) -> float:
    """1 if the year, and no other, is in the answer; else 0."""
    return float(set(re.findall(r"\b\d{4}\b", completion)) == {answer})


def lookups(messages: list[Message]) -> float:
    """How many records were looked at."""
    return float(sum(message["role"] == "tool" and message.get("name") == "look" for message in messages))


def demonstrate(task: Task, sample: int) -> list[Message]:
    """Somebody who knows which of the records found is the right one."""
    words, number = task.info["title"].lower(), task.info["record"]
    return [
        tool_call("search", f'{{"words": "{words}"}}', "call_0"),
        {"role": "tool", "tool_call_id": "call_0", "name": "search", "content": str(number)},
        tool_call("look", f'{{"number": {number}}}', "call_1"),
        {"role": "tool", "tool_call_id": "call_1", "name": "look", "content": f'{{"lent": {task.answer}}}'},
        {"role": "assistant", "content": task.answer},
    ]
