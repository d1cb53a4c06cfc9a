"""Find exact answers in documentation, with tools to search pages, view their sections and read one.

By default the documentation of Python's standard library and of NumPy, as it is installed: no download. Each question
has one exact answer, which stands somewhere in the corpus and is checked against the code itself. The `hard` split asks
about things without quoting their names.
"""

import ast
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from envs import (
    ConfigError,
    Environment,
    Message,
    Rubric,
    Task,
    Taskset,
    Trajectory,
    derive_seed,
    make_tool,
    tool_use,
    xml_tag,
)
from envs.clients.scripted import tool_call

from . import invented, python_docs
from .index import Index, open_index
from .pages import pages_in
from .questions import Question, make_questions
from .tools import make_tools

SYSTEM = """\
Answer the question from the documentation, which you can search and read with the tools. Give the answer alone, in a \
tag: <answer>None</answer>. A default value is written as in Python, a version like 1.20."""

PYTHON, INVENTED = "python", "invented"


def load_environment(
    corpus: str = PYTHON,
    questions_file: str | None = None,
    max_turns: int = 8,
    results: int = 5,
    section_chars: int = 1000,
    result_chars: int = 20_000,
    train_tasks: int | None = None,
    eval_tasks: int | None = 256,
    system: str = SYSTEM,
    seed: int = 0,
) -> Environment:
    """Questions about documentation, and tools to find the answers.

    Args:
        corpus: "python", the docstrings of the installed standard library and NumPy; "invented", as many functions that
            do not exist, to practise on; or a folder of text, Markdown, HTML and RST files.
        questions_file: for a folder, JSON lines with `question` and `answer` (see `Taskset.from_jsonl`), and if you
            like the `page` and `section` that tell it and the words there (`quote`), for metrics and demonstrations.
        max_turns: the most turns of the model, its answer included.
        results: how many pages a search returns.
        section_chars: the most characters of a section, 1,000 are about 256 tokens; longer ones are divided.
        result_chars: what a tool returns is cut after so many characters, with a notice.
        train_tasks: at most this many tasks to train on; None takes all there are.
        eval_tasks: at most this many tasks in each of the splits "eval" and "hard"; None takes all there are.
        system: the system message.
        seed: decides the order of the tasks.
    """
    if max_turns < 2 or results < 1 or section_chars < 100 or result_chars < 100:
        raise ConfigError(
            f"max_turns={max_turns}, results={results}, section_chars={section_chars}, result_chars={result_chars}; "
            "expected at least 2 turns, 1 result and 100 characters"
        )
    index = open_corpus(corpus, section_chars)
    most = {"train": train_tasks, "eval": eval_tasks, "hard": eval_tasks}

    def asked(split: str) -> list[Task]:
        chosen = [question for question in index.questions() if question.split == split]
        chosen.sort(key=lambda question: derive_seed(seed, question.id))
        return [_task(question, system, index.digest) for question in chosen[: most[split]]]

    if corpus in (PYTHON, INVENTED):
        if questions_file is not None:
            raise ConfigError(f"questions_file goes with a folder of your own; corpus={corpus!r} brings its questions")
        tasks = Taskset.from_function(asked, ("train", "eval", "hard"))
    elif questions_file is None:
        raise ConfigError(
            f"corpus={corpus!r} needs questions: questions_file=…, JSON lines with `question` and `answer`"
        )
    else:
        tasks = Taskset.from_jsonl(questions_file, row=lambda row: _own_task(row, system, index.digest))

    def demonstrate(task: Task, sample: int) -> list[Message]:
        return expert(index, task, results)

    return Environment(
        tasks=tasks,
        harness=tool_use(
            [make_tool(tool, max_chars=result_chars) for tool in make_tools(index, results)], max_turns=max_turns
        ),
        rubric=Rubric({accuracy: 1.0, page_found: 0.0, section_read: 0.0, calls: 0.0, failed_calls: 0.0}),
        demonstrate=demonstrate,
    )


@cache
def open_corpus(corpus: str = PYTHON, section_chars: int = 1000) -> Index:
    """The index of a corpus. The first time takes some seconds, per version of what it is made of.

    Raises:
        ConfigError: for a folder that does not exist or holds no text.
    """
    if corpus in (PYTHON, INVENTED):

        def documented() -> tuple[Sequence[Any], Sequence[Question]]:
            entries = python_docs.entries()
            entries = entries if corpus == PYTHON else invented.entries(entries)
            pages = python_docs.pages_of(entries, section_chars)
            return pages, make_questions(entries, pages)

        return open_index(f"{corpus} {python_docs.versions()} {section_chars}", documented)
    pages = pages_in(Path(corpus).expanduser(), section_chars)
    return open_index(hashlib.sha256(json.dumps(pages).encode()).hexdigest(), lambda: (pages, ()))


def _task(question: Question, system: str, digest: str) -> Task:
    info = {name: getattr(question, name) for name in ("kind", "page", "section", "quote")}
    return Task.ask(
        question.id,
        question.text,
        question.answer,
        system=system,
        corpus=digest[:12],
        words=list(question.words),
        **info,
    )


def _own_task(row: Mapping[str, Any], system: str, digest: str) -> Task:
    missing = {"question", "answer"} - row.keys()
    if missing:
        raise ConfigError(f"a question without {sorted(missing)}: {row}; expected `question` and `answer`")
    asked = str(row["question"])
    name = str(row.get("id") or hashlib.sha256(asked.encode()).hexdigest()[:16])
    info = {"kind": "", "page": row.get("page", ""), "section": row.get("section", "")}
    info |= {"quote": row.get("quote", ""), "corpus": digest[:12]}
    return Task.ask(name, asked, row["answer"], system=system, words=[asked], **info)


# Rewards and metrics


def accuracy(completion: str, answer: Any, info: Mapping[str, Any]) -> float:
    """1 if the answer is right, else 0: what the last <answer> tag holds or, if there is none, the whole message."""
    found = xml_tag("answer")(completion)
    return float(same(completion if found is None else found, str(answer), info["kind"]))


def same(found: str, answer: str, kind: str) -> bool:
    """Whether an answer is the right one, however it is written: `'x'` is `"x"` and x, version 1.20.0 is 1.20."""
    found = found.strip().strip("`").strip()
    if found == answer:
        return True
    if kind == "version":
        return found.removeprefix("NumPy ").removesuffix(".0") == answer.removesuffix(".0") and found.count(".") > 1
    if kind != "default":
        return not kind and found.casefold() == answer.casefold()
    wanted = ast.literal_eval(answer)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a model takes for Python
            value = ast.literal_eval(found)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return isinstance(wanted, str) and found == wanted != ""
    return type(value) is type(wanted) and value == wanted


def page_found(messages: Sequence[Message], info: Mapping[str, Any]) -> float:
    """1 if a search returned the page that tells the answer."""
    said = (m["content"] or "" for m in messages if m["role"] == "tool" and m.get("name") == "search_pages")
    return float(any(info["page"] in text.splitlines() for text in said))


def section_read(trajectory: Trajectory, info: Mapping[str, Any]) -> float:
    """1 if the section that tells the answer was read; where the page's title tells it, if the page was found."""
    if not info["section"]:
        return page_found(trajectory.messages, info)
    wanted = {"page": info["page"], "section": info["section"]}
    asked = [c["function"] for m in trajectory.messages for c in m.get("tool_calls") or () if m["role"] == "assistant"]
    return float(any(a["name"] == "read_section" and _arguments(a["arguments"]) == wanted for a in asked))


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def calls(messages: Sequence[Message]) -> float:
    """How many tools were called."""
    return float(sum(message["role"] == "tool" for message in messages))


def failed_calls(messages: Sequence[Message]) -> float:
    """How many calls were answered with an error."""
    return float(sum(m["role"] == "tool" and (m["content"] or "").startswith("Error: ") for m in messages))


# The expert


def expert(index: Index, task: Task, results: int) -> list[Message]:
    """Searches until the page is among the results, reads the section that tells the answer, quotes what it says there,
    and answers: below `order='K'`, nobody has to look for the value any more.

    Raises:
        ConfigError: for a question of your own that does not say where its answer stands.
    """
    info = task.info
    if not info["page"]:
        raise ConfigError(f"question '{task.id}' has no `page`; an expert has to know where its answer stands")
    messages: list[Message] = []
    for words in info["words"]:
        found = index.search(words, results)
        _call(messages, "search_pages", {"query": words}, "\n".join(found) or "No page fits. Try other words.")
        if info["page"] in found:
            break
    if info["section"]:
        where = {"page": info["page"]}
        _call(messages, "view_sections", where, "\n".join(index.sections(info["page"])))
        text = index.read(info["page"], info["section"])
        if text is None:
            raise ConfigError(f"question '{task.id}': there is no section '{info['section']}' on page '{info['page']}'")
        _call(messages, "read_section", where | {"section": info["section"]}, text)
    quote = f"{info['quote']}\n" if info["quote"] else ""
    return [*messages, {"role": "assistant", "content": f"{quote}<answer>{task.answer}</answer>"}]


def _call(messages: list[Message], name: str, arguments: Mapping[str, str], result: str) -> None:
    message = tool_call(name, json.dumps(arguments), f"call_{len(messages) // 2}")
    answer: Message = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "name": name, "content": result}
    messages += [message, answer]
