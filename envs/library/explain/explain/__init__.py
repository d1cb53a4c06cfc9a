"""Explain a function of Python's standard library in a sentence, before a judge."""

import hashlib
import importlib
import inspect
import json
import re
from collections import Counter
from pathlib import Path

from envs import Client, Environment, Message, OpenAIClient, Rubric, ScriptedClient, Task, Taskset, judge, single_turn
from envs.errors import ConfigError

MODULES = [
    "math",
    "cmath",
    "os.path",
    "shutil",
    "statistics",
    "random",
    "string",
    "textwrap",
    "heapq",
    "bisect",
    "json",
    "operator",
    "functools",
    "inspect",
    "glob",
    "fnmatch",
    "calendar",
    "colorsys",
    "base64",
    "binascii",
    "zlib",
]
SYSTEM = "You explain functions of Python's standard library to a beginner, each in one sentence."
HELD_OUT = 3
"""One in three functions is held out."""


def first_sentence(doc: str) -> str:
    """The first sentence of a docstring, on one line, without the signature that some begin with."""
    paragraph = " ".join(re.split(r"\n\s*\n", doc.strip())[0].split())
    return re.split(r"(?<=[.!])\s", paragraph)[0]


def functions() -> dict[str, str]:
    """The public functions of `MODULES` that say what they do in a sentence of five words or more."""
    found: dict[str, str] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute, value in sorted(vars(module).items()):
            if attribute.startswith("_") or not inspect.isroutine(value) or not value.__doc__:
                continue
            sentence = first_sentence(value.__doc__)
            if len(sentence.split()) >= 5 and sentence not in found.values():
                found[f"{name}.{attribute}"] = sentence
    return found


def tasks(split: str) -> list[Task]:
    """A function each; a hash of its name decides the split and the place, so that neighbours have little in common."""
    places = {name: hashlib.sha256(name.encode()).digest() for name in functions()}
    return [
        Task.ask(name, f"What does `{name}` do?", sentence, system=SYSTEM)
        for name, sentence in sorted(functions().items(), key=lambda item: places[item[0]])
        if (places[name][-1] % HELD_OUT == 0) == (split == "eval")
    ]


def word_overlap(messages: list[Message]) -> str:
    """A stand-in for a judge that needs no model: how many of the reference's words the answer has, and how many of
    its words are the reference's (F1); brief is what is not much longer.
    """
    material = messages[-1]["content"] or ""
    fence = material.splitlines()[0].rpartition(" ")[2]
    reference, answer = (words(part) for part in material.split(fence)[3:6:2])
    common = sum((reference & answer).values())
    faithful = 2 * common / (reference.total() + answer.total())
    brief = float(0 < answer.total() <= 2 * reference.total() + 5)
    return json.dumps({"reasoning": f"{common} words in common", "faithful": faithful, "brief": brief})


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def load_environment(
    judge_url: str = "", judge_model: str = "", criteria: str = "", cache: str = "", timeout: float = 120.0
) -> Environment:
    """Explaining functions.

    Args:
        judge_url: a server that judges, up to and with /v1; empty: words in common with the docstring.
        judge_model: the judge's name at that server.
        criteria: a YAML file with other criteria than this environment's (with a server only).
        cache: an SQLite file of verdicts, so that none is paid for twice.
        timeout: seconds for one verdict.
    """
    if bool(judge_url) != bool(judge_model):
        raise ConfigError(f"judge_url={judge_url!r}, judge_model={judge_model!r}; expected both, or neither")
    if criteria and not judge_url:
        raise ConfigError(f"criteria={criteria!r} needs a judge that can read: set judge_url and judge_model")
    client: Client = (
        OpenAIClient(judge_url, judge_model, timeout=timeout) if judge_url else ScriptedClient(word_overlap)
    )
    looked_at = Path(criteria or Path(__file__).with_name("criteria.yaml"))
    verdict = judge(client, looked_at, cache=cache or None)
    return Environment(
        tasks=Taskset.from_function(tasks),
        harness=single_turn(),
        rubric=Rubric({verdict: 0.8}),  # faithful counts 0.8, brief 0.2
        demonstrate=lambda task, sample: str(task.answer),
    )
