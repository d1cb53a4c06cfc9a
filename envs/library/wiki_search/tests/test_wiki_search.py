"""Questions, tools and rewards of `wiki_search`, through what its users call."""

import ast
import dataclasses
import importlib
import inspect
import json
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from envs import ConfigError, Environment, ScriptedClient, Task, Trajectory, load_environment, run_task
from envs.clients.scripted import tool_call


@pytest.fixture(scope="module")
def environment() -> Environment:
    return load_environment("wiki_search", eval_tasks=None)


async def say(environment: Environment, task: Task, *replies: object) -> Trajectory:
    trajectory = await run_task(environment, task, ScriptedClient(replies))  # type: ignore[arg-type]
    assert trajectory.failure is None, trajectory.failure
    return trajectory


def asked(environment: Environment, **wanted: object) -> Task:
    return next(task for task in environment.tasks if all(task.info[key] == value for key, value in wanted.items()))


def results(trajectory: Trajectory) -> list[str]:
    return [str(message["content"]) for message in trajectory.messages if message["role"] == "tool"]


def test_there_are_many_questions_and_no_answer_is_frequent(environment: Environment) -> None:
    sizes = {}
    for split in ("train", "eval", "hard"):
        answers = Counter(task.answer for task in environment.tasks.split(split))
        sizes[split] = answers.total()
        assert answers.most_common(1)[0][1] <= 0.05 * answers.total()
    assert sizes["train"] >= 1000 and sizes["eval"] >= 300 and sizes["hard"] >= 150
    assert {task.info["kind"] for task in environment.tasks.split("train")} == {"default", "module", "version"}
    assert len({task.info["corpus"] for task in environment.tasks}) == 1


def test_names_to_evaluate_on_are_none_to_train_on(environment: Environment) -> None:
    def names(split: str) -> set[str]:
        return {task.id.split(":")[2].rpartition(".")[2] for task in environment.tasks.split(split)}

    assert names("train").isdisjoint(names("eval") | names("hard"))


def test_hard_questions_do_not_quote_the_name(environment: Environment) -> None:
    for task in environment.tasks.split("hard"):
        question, name = str(task.prompt[-1]["content"]), task.id.split(":")[2]
        assert name.rpartition(".")[2].lower() not in question.partition("others: ")[2].lower().split()
        assert name not in question and "`" not in question.replace("parameter `", "", 1).replace("`", "", 1)


IMPORTABLE = (
    "argparse bisect calendar collections csv difflib heapq inspect json logging shutil statistics textwrap zipfile"
)


def test_defaults_are_those_of_the_real_signatures(environment: Environment) -> None:
    checked = 0
    for task in environment.tasks:
        _, kind, name, *about = task.id.split(":")
        module = next((m for m in (*IMPORTABLE.split(), "numpy") if name.startswith(f"{m}.")), None)
        if kind != "default" or module is None:
            continue
        found: Any = importlib.import_module(module)
        for part in name.removeprefix(f"{module}.").split("."):
            found = getattr(found, part)
        try:
            real = inspect.signature(found).parameters[about[0]].default
        except ValueError:  # what replaces the Python source is compiled, and silent about its arguments
            continue
        assert real == ast.literal_eval(task.answer), task.id
        checked += 1
    assert checked > 300


def test_what_is_known_is_asked(environment: Environment) -> None:
    answers = {task.id.partition(":")[2]: task.answer for task in environment.tasks}
    known = {
        "default:numpy.quantile:method": "'linear'",
        "default:json.dumps:separators": "None",
        "module:collections.OrderedDict": "collections",
        "version:numpy.strings.slice": "2.3",
    }
    assert known.items() & answers.items(), "at least one of them is chosen by the hash"
    assert all(answers.get(question, answer) == answer for question, answer in known.items())


def test_invented_names_are_nobodys_and_their_answers_stand_on_their_pages(environment: Environment) -> None:
    index = importlib.import_module(environment.demonstrate.__module__).open_corpus("invented")
    train = [question for question in index.questions() if question.split == "train"]
    assert len(train) > 7000 and {question.kind for question in train} == {"default", "module", "version"}

    def names(ids: Iterable[str]) -> set[str]:
        return {each.split(":")[2].rpartition(".")[2] for each in ids}

    assert names(q.id for q in index.questions()).isdisjoint(names(task.id for task in environment.tasks))
    for question in train[:500]:
        if question.kind == "module":
            assert question.page.startswith(f"{question.answer}."), question
        else:
            shown = {"default": f"={question.answer}", "version": f"versionadded:: {question.answer}"}[question.kind]
            assert shown in index.read(question.page, question.section), question


async def test_a_model_searches_views_reads_and_answers(environment: Environment) -> None:
    task = asked(environment, kind="default", section="Signature")
    page = task.info["page"]
    trajectory = await say(
        environment,
        task,
        tool_call("search_pages", json.dumps({"query": page})),
        tool_call("view_sections", json.dumps({"page": page})),
        tool_call("read_section", json.dumps({"page": page, "section": "Signature"})),
        f"It is <answer>{task.answer}</answer>.",
    )
    found, sections, text = results(trajectory)
    assert page in found.splitlines() and len(found.splitlines()) <= 5
    assert sections.splitlines()[0] == "Signature"
    assert f"={task.answer}" in text
    assert trajectory.reward == 1.0 and trajectory.stop == "completed"
    assert trajectory.metrics == {"page_found": 1.0, "section_read": 1.0, "calls": 3.0, "failed_calls": 0.0}


async def test_what_does_not_exist_is_answered_with_what_does(environment: Environment) -> None:
    task = asked(environment, kind="module")
    trajectory = await say(
        environment,
        task,
        tool_call("search_pages", '{"query": "\\" OR the ("}'),
        tool_call("search_pages", '{"query": "qqqzzz*"}'),
        tool_call("view_sections", '{"page": "textwrap.rap"}'),
        tool_call("read_section", '{"page": "textwrap.wrap", "section": "Nothing"}'),
        tool_call("read_section", '{"page": "no such page at all zzz", "section": "x"}'),
        "?",
    )
    nothing, none, page, section, _ = results(trajectory)
    assert nothing == none == "No page fits. Try other words."
    assert page.startswith("Error: there is no page 'textwrap.rap'. Close to it: textwrap.")
    assert section == "Error: 'textwrap.wrap' has no section 'Nothing'. It has: Signature, Description"
    assert trajectory.reward == 0.0 and trajectory.metrics["failed_calls"] == 3.0


@pytest.mark.parametrize(
    ("kind", "answer", "said", "reward"),
    [
        ("default", "None", "<answer>None</answer>", 1.0),
        ("default", "None", "None", 1.0),
        ("default", "None", "The default is None", 0.0),
        ("default", "None", "<answer>'None'</answer>", 0.0),
        ("default", "'utf-8'", '<answer>"utf-8"</answer>', 1.0),
        ("default", "'utf-8'", "<answer>`utf-8`</answer>", 1.0),
        ("default", "''", "", 0.0),
        ("default", "''", '<answer>""</answer>', 1.0),
        ("default", "1", "<answer>True</answer>", 0.0),
        ("default", "1", "<answer>1.0</answer>", 0.0),
        ("default", "1e-08", "<answer>0.00000001</answer>", 1.0),
        ("default", "0", "<answer>None</answer> or <answer>0</answer>", 1.0),
        ("version", "1.20", "<answer>1.20.0</answer>", 1.0),
        ("version", "1.20", "<answer>NumPy 1.20.0</answer>", 1.0),
        ("version", "1.20", "<answer>1.2</answer>", 0.0),
        ("version", "2.0", "<answer>2</answer>", 0.0),
        ("module", "numpy.linalg", "<answer>`numpy.linalg`</answer>", 1.0),
        ("module", "numpy.linalg", "<answer>numpy</answer>", 0.0),
    ],
)
async def test_an_answer_is_exact_however_it_is_written(
    environment: Environment, kind: str, answer: str, said: str, reward: float
) -> None:
    task = Task.ask("t", "?", answer, kind=kind, page="p", section="")
    assert (await say(environment, task, said)).reward == reward


def test_an_expert_finds_nearly_every_page_and_reads_what_it_answers(environment: Environment) -> None:
    found = 0
    tasks = environment.tasks.split("eval").head(100)
    for task in tasks:
        *_, last = messages = environment.demonstration(task)
        seen = "\n".join(str(message["content"]) for message in messages if message["role"] == "tool")
        quote, answer = str(last["content"]).rpartition("\n")[::2]
        assert quote == task.info["quote"] and answer == f"<answer>{task.answer}</answer>"
        assert quote in seen and bool(quote) == bool(task.info["section"])
        searched = json.loads(messages[0]["tool_calls"][0]["function"]["arguments"])["query"]
        assert f"`{searched}`" in str(task.prompt[-1]["content"])  # nobody could learn to search for the answer
        found += task.info["page"] in seen
    assert found >= 95


async def test_searching_is_safe_from_many_threads_and_writes_nothing(environment: Environment) -> None:
    module = importlib.import_module(environment.demonstrate.__module__)
    index = module.open_corpus()
    before = index.path.read_bytes()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: index.search("split a string into words", 5), range(64)))
    assert len(found[0]) == 5 and all(titles == found[0] for titles in found)
    assert index.path.read_bytes() == before
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        index._rows("delete from sections")


async def test_long_results_are_cut_where_that_is_asked_for(environment: Environment) -> None:
    short = load_environment("wiki_search", result_chars=120)
    trajectory = await say(short, short.tasks[0], tool_call("view_sections", '{"page": "numpy.ndarray"}'), "?")
    (sections,) = results(trajectory)
    assert sections.startswith("Signature\n") and sections.endswith("characters shown]") and len(sections) < 170


async def test_the_same_tools_are_an_mcp_server(environment: Environment) -> None:
    pytest.importorskip("mcp", reason="the tools of MCP servers need the extra `mcp`")
    from envs import MCPTools, tool_use

    folder = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "wiki_search.server", "--results", "5"]
    served = MCPTools(command, env={"PYTHONPATH": os.pathsep.join([folder, *sys.path])})
    over_mcp = dataclasses.replace(environment, harness=tool_use([served], max_turns=8))
    task = asked(environment, kind="default")
    replies = [message for message in environment.demonstration(task) if message["role"] == "assistant"]
    replies[-1:] = [tool_call("view_sections", '{"page": "textwrap.rap"}'), replies[-1]]  # what fails is told alike
    here, there = await say(environment, task, *replies), await say(over_mcp, task, *replies)
    await served.close()
    assert here.reward == there.reward == 1.0 and len(results(here)) >= 4
    assert results(there)[:-1] == results(here)[:-1]
    assert "there is no page 'textwrap.rap'. Close to it:" in results(there)[-1]


# A folder of one's own


def test_a_folder_of_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    docs = tmp_path / "docs"
    (docs / "deep").mkdir(parents=True)
    (docs / "a.md").write_text("Hello.\n# Setup #\nRun it.\n```\n# no heading\n```\n## Use\nLike this.\n")
    (docs / "b.html").write_text(
        "<html><head><title>T</title></head><p>Intro</p><h2>Us<b>age</b></h2><p>Call &amp; wait.</p>"
    )
    (docs / "deep" / "c.rst").write_text("=====\nTitle\n=====\nText.\n\nMore\n----\n" + "word " * 100)
    (docs / "d.txt").write_text("The launch code is 4711.")
    (docs / "e.png").write_bytes(b"\x89PNG")
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question": f"What is the launch code ({n})?", "answer": 4711, "page": "d.txt", "section": "Text"}
        for n in range(40)
    ]
    questions.write_text("\n".join(map(json.dumps, rows)))
    arguments = {"corpus": str(docs), "questions_file": str(questions), "section_chars": 200}
    own = load_environment("wiki_search", **arguments)
    assert own.tasks.splits == ("train", "eval") and len(own.tasks) == 40
    module = importlib.import_module(own.demonstrate.__module__)
    index = module.open_corpus(str(docs), 200)
    assert index.sections("a.md") == ["Introduction", "Setup", "Use"]
    assert index.read("a.md", "Setup") == "Run it.\n```\n# no heading\n```"
    assert index.sections("b.html") == ["Introduction", "Usage"]
    assert index.read("b.html", "Usage") == "Call & wait."
    assert index.sections("deep/c.rst") == ["Title", "More", "More (2)", "More (3)"]
    assert index.search("launch codes", 3) == ["d.txt"]
    assert own.demonstration(own.tasks[0])[-1]["content"] == "<answer>4711</answer>"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        load_environment("wiki_search", corpus=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="holds no text"):
        load_environment("wiki_search", corpus=str(tmp_path))
    with pytest.raises(ConfigError, match="questions_file goes with a folder"):
        load_environment("wiki_search", questions_file="questions.jsonl")
    with pytest.raises(ConfigError, match="expected at least 2 turns"):
        load_environment("wiki_search", max_turns=1)
    (tmp_path / "a.txt").write_text("Something.")
    with pytest.raises(ConfigError, match="needs questions"):
        load_environment("wiki_search", corpus=str(tmp_path))
