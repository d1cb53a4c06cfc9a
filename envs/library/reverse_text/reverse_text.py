"""Reverse a text, character by character: a task for models that know nothing yet.

The user message is the text and nothing else, so that a tiny character-level model can be trained from scratch. The
texts are real English: words and phrases out of the docstrings of Python's standard library, which every installation
has. Their lengths are arguments, so a curriculum is a matter of overrides.

The reward is how much of the reversed text is there and in order, see `similarity`: partial credit, from 0 to 1.
"""

import hashlib
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from envs import ConfigError, Environment, Rubric, Task, Taskset, TasksetError, derive_seed, single_turn

Unit = Literal["word", "phrase"]


def load_environment(
    unit: Unit = "word",
    min_length: int = 3,
    max_length: int = 6,
    train_tasks: int | None = None,
    eval_tasks: int | None = 256,
    exact_weight: float = 0.0,
    clean_demonstrations: float = 0.4,
    system: str | None = None,
    seed: int = 0,
) -> Environment:
    """Reverse words or phrases of `min_length` to `max_length` characters.

    Args:
        unit: "word", or "phrase": one or more consecutive words of a sentence, in lower case, a space between them.
        min_length: fewest characters of a text, spaces included.
        max_length: most characters of a text, spaces included.
        train_tasks: at most this many tasks to train on; None takes all there are.
        eval_tasks: at most this many tasks to evaluate on; None takes all there are.
        exact_weight: share of the reward (0 to 1) that only the exact answer earns; the rest is `similarity`.
        clean_demonstrations: share of demonstrations (0 to 1) that are right; the others copy the text unchanged.
        system: a system message, for models that need to be told what to do.
        seed: decides the order of the tasks and which demonstrations are right.
    """
    if not 2 <= min_length <= max_length:
        raise ConfigError(f"lengths from {min_length} to {max_length}; expected 2 <= min_length <= max_length")
    for name, share in {"exact_weight": exact_weight, "clean_demonstrations": clean_demonstrations}.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"{name} is {share}; expected a share from 0 to 1")
    most = {"train": train_tasks, "eval": eval_tasks}

    def tasks(split: str) -> list[Task]:
        chosen = [text for text in texts(unit, min_length, max_length) if split_of(text) == split]
        chosen.sort(key=lambda text: derive_seed(seed, text))
        origin = corpus_digest()[:12]
        return [
            Task.ask(text.replace(" ", "-"), text, text[::-1], system=system, corpus=origin)
            for text in chosen[: most[split]]
        ]

    def demonstrate(task: Task, sample: int) -> str:
        reversed_text: str = task.answer
        clean = derive_seed(seed, "demonstration", task.id, sample) < clean_demonstrations * 2**31
        return reversed_text if clean else reversed_text[::-1]

    return Environment(
        tasks=Taskset.from_function(tasks),
        harness=single_turn(),
        rubric=Rubric({similarity: 1.0 - exact_weight, exact_match: exact_weight}),
        demonstrate=demonstrate,
    )


# Rewards


def similarity(completion: str, answer: str) -> float:
    """Length of the longest common subsequence over that of the longer text: 1 for the exact answer only.

    Dividing by the longer text and not by the mean of both, as 2·LCS / (m + n) does, makes every superfluous character
    cost: whoever writes the answer twice, or all it could be, has half a point at most.
    """
    given = completion.strip()
    common = [0] * (len(answer) + 1)  # of what was read of `given` so far, with each prefix of `answer`
    for character in given:
        diagonal = 0
        for i, wanted in enumerate(answer, start=1):
            above = common[i]
            common[i] = diagonal + 1 if character == wanted else max(above, common[i - 1])
            diagonal = above
    return common[-1] / max(len(given), len(answer))


def exact_match(completion: str, answer: str) -> float:
    """1 if every character is right, white space around the answer aside; else 0."""
    return float(completion.strip() == answer)


# Texts


@cache
def texts(unit: Unit, min_length: int, max_length: int) -> tuple[str, ...]:
    """All texts of these lengths, each once, sorted; without palindromes, which a copy would solve."""
    found = set(corpus().words) if unit == "word" else set(phrases(max_length))
    return tuple(sorted(text for text in found if min_length <= len(text) <= max_length and text != text[::-1]))


def phrases(max_length: int) -> Iterator[str]:
    """Every run of words within a sentence, up to `max_length` characters."""
    for sentence in corpus().sentences:
        words = sentence.split()
        for start in range(len(words)):
            phrase = ""
            for word in words[start:]:
                phrase += f" {word}" if phrase else word
                if len(phrase) > max_length:
                    break
                yield phrase


def split_of(text: str) -> Literal["train", "eval"]:
    """A quarter of all texts is for evaluation. Nothing but the text decides, so no argument ever moves one."""
    return "eval" if derive_seed("split", text) % 4 == 0 else "train"


class Corpus(NamedTuple):
    """English out of the standard library, in lower case.

    Attributes:
        words: every real word, sorted: part of a sentence of prose, and at home in two modules or more, as the names
            in somebody's example are not.
        sentences: every sentence of prose made of such words, sorted, without punctuation.
    """

    words: tuple[str, ...]
    sentences: tuple[str, ...]


PROSE = re.compile(r"[A-Z][a-z]*(?:,? [a-z]+){2,}[.!?]")
WORD = re.compile(r"(?<!\S)[a-z]+(?=[.,;:!?]?(?!\S))")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")


@cache
def corpus() -> Corpus:
    """Read the standard library's docstrings, importing nothing: about half a second, once per process."""
    homes: Counter[str] = Counter()  # in how many modules a word occurs
    prose: set[str] = set()
    for docstrings in standard_library():
        sentences = {" ".join(sentence.split()) for sentence in SENTENCE_END.split(docstrings)}
        homes.update({word for sentence in sentences for word in WORD.findall(sentence)})
        prose.update(re.sub("[^a-z ]", "", s.lower()) for s in sentences if PROSE.fullmatch(s))
    words = {word for sentence in prose for word in sentence.split() if homes[word] >= 2}
    if not words:
        raise TasksetError(f"no docstrings found in {sysconfig.get_path('stdlib')}; expected Python's own .py files")
    return Corpus(tuple(sorted(words)), tuple(sorted(s for s in prose if words.issuperset(s.split()))))


def corpus_digest() -> str:
    """SHA-256 of the corpus: equal digests mean equal tasks. It changes with the version of Python."""
    return hashlib.sha256("\n".join([*corpus().words, *corpus().sentences]).encode()).hexdigest()


# Third-party code and tests, and what some distributions of Python come without.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests"}
LEFT_OUT |= {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtle.py", "turtledemo"}


def standard_library() -> Iterator[str]:
    """The docstrings of one module after the other."""
    for folder, folders, files in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = set(folders) - LEFT_OUT
        for file in set(files) - LEFT_OUT:
            if file.endswith(".py"):
                # Strings that begin their line. Parsing the files properly takes ten times as long.
                parts = Path(folder, file).read_text("utf-8", errors="replace").split('"""')
                pairs = zip(parts[0::2], parts[1::2], strict=False)
                yield "\n\n".join(text for code, text in pairs if not code.rpartition("\n")[2].strip(" rR"))
