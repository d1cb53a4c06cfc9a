"""Questions about the documentation whose answers are exact, and what to answer without having looked."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from envs import derive_seed

from .pages import Page
from .python_docs import DESCRIPTION, SIGNATURE, Entry

MOST_SHARE = 0.05
"""No answer is that of a larger share of a split."""


class Question(NamedTuple):
    """One question.

    Attributes:
        id: what it asks about.
        kind: "default", "module" or "version".
        split: "train", "eval" or "hard".
        text: what is asked.
        answer: a Python literal, the name of a module, or a version.
        page: where the answer stands, and `section` on it; empty if the page's title tells it.
        quote: what stands there, word for word; empty if the page's title tells it.
        words: what an expert would search for, from the best query to the last.
    """

    id: str
    kind: str
    split: str
    text: str
    answer: str
    page: str
    section: str
    quote: str
    words: tuple[str, ...]


def make_questions(entries: Sequence[Entry], pages: Iterable[Page]) -> list[Question]:
    """All there are, in an order that no argument changes; at most `MOST_SHARE` of a split has the same answer."""
    by_title = {page.title: page for page in pages}
    described = _descriptions(entries)
    by_split: dict[str, list[Question]] = defaultdict(list)
    for fact in _facts(entries, by_title):
        split = split_of(fact.entry.name)
        known = _name_words(fact)
        by_split[split].append(_question(fact, split, fact.named, known))
        words = described.get(fact.entry.name)
        if split == "eval" and words:
            by_split["hard"].append(
                _question(fact, "hard", fact.unnamed.format(_quoted(fact.entry, words)), (words, *known))
            )
    return [question for split in ("train", "eval", "hard") for question in _balanced(by_split[split])]


def split_of(name: str) -> Literal["train", "eval"]:
    """A fifth of all names is for evaluation. The last part of a name decides alone: functions that two modules have
    under one name are on the same side."""
    return "eval" if derive_seed("split", name.rpartition(".")[2]) % 5 == 0 else "train"


class _Fact(NamedTuple):
    entry: Entry
    kind: str
    about: str
    named: str
    unnamed: str
    answer: str
    page: str
    section: str
    quote: str


def _question(fact: _Fact, split: str, text: str, words: tuple[str, ...]) -> Question:
    name = f"{split}:{fact.kind}:{fact.entry.name}" + (f":{fact.about}" if fact.about else "")
    return Question(name, fact.kind, split, text, fact.answer, fact.page, fact.section, fact.quote, words)


def _facts(entries: Sequence[Entry], pages: Mapping[str, Page]) -> Iterator[_Fact]:
    named = Counter(entry.name.rpartition(".")[2] for entry in entries)
    for entry in entries:
        owner, _, short = entry.name.rpartition(".")
        page = owner if entry.kind == "method" else entry.name
        if page not in pages:
            continue
        read = {section.title: section.text for section in pages[page].sections}
        own = short if entry.kind == "method" else SIGNATURE
        if own in read:
            yield from _defaults(entry, page, own, read[own])
        if entry.kind != "method" and named[short] == 1:
            asked = f"Which public module defines the {entry.kind} `{short}`?"
            unnamed = f"Which public module defines the {entry.kind} that is {{}}?"
            yield _Fact(entry, "module", "", asked, unnamed, entry.module, page, "", "")
        if entry.kind != "method" and entry.module.startswith("numpy"):
            yield from _versions(entry, page, read)


def _defaults(entry: Entry, page: str, section: str, text: str) -> Iterator[_Fact]:
    signature = text.partition("\n\n")[0]
    for parameter, value in entry.defaults.items():
        if f"{parameter}={value}" not in signature or _doubted(entry.doc, parameter, value):
            continue
        asked = f"What is the default value of the parameter `{parameter}` of `{entry.name}`?"
        unnamed = f"What is the default value of the parameter `{parameter}` of the {entry.kind} that is {{}}?"
        yield _Fact(entry, "default", parameter, asked, unnamed, value, page, section, f"{parameter}={value}")


def _doubted(doc: str, parameter: str, value: str) -> bool:
    """Whether the text names another default than the signature."""
    described = _parameters(doc).get(parameter, "")
    for found in re.findall(r"[Dd]efaults?(?: value)?(?: to| is|:|=| =)?\s+`*([^\s`,;]+?)`*[.,;)]?(?=\s|$)", described):
        try:
            if ast.literal_eval(found) != ast.literal_eval(value):
                return True
        except (ValueError, SyntaxError):
            continue
    return False


def _parameters(doc: str) -> dict[str, str]:
    """What a docstring in NumPy's style says about each of its parameters that is described by itself."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n---|\Z)", doc, re.DOTALL | re.MULTILINE)
    entries = re.split(r"^(?=\S)", section[1], flags=re.MULTILINE) if section else []
    return {head[1]: entry for entry in entries if (head := re.match(r"\*{0,2}(\w+)\s*:", entry))}


_ADDED = re.compile(r"^( *)\.\. versionadded::[ ]*(\d[\d.]*)[ ]*$(?![\n]\1 +\S)", re.MULTILINE)


def _versions(entry: Entry, page: str, read: Mapping[str, str]) -> Iterator[_Fact]:
    """Directives without a text of their own are about the whole that they stand in: the object, or a parameter."""
    beginning = re.split(r"^\S[^\n]*\n---+$", entry.doc, maxsplit=1, flags=re.MULTILINE)[0]
    places = {"": beginning, **{p: text for p, text in _parameters(entry.doc).items() if f"{p}=" in entry.signature}}
    for parameter, text in places.items():
        found = _ADDED.findall(text)
        if len(found) != 1 or text.count("versionadded") != 1 or (not parameter and found[0][0]):
            continue
        directive = f"versionadded:: {found[0][1]}"
        homes = [title for title, shown in read.items() if directive in shown]
        if not homes:
            continue
        what = f"the parameter `{parameter}` of " if parameter else ""
        asked = f"In which version of NumPy was {what}`{entry.name}` added?"
        unnamed = f"In which version of NumPy was {what}the {entry.kind} added that is {{}}?"
        section = next((h for h in homes if h.startswith("Parameters" if parameter else DESCRIPTION)), homes[0])
        yield _Fact(
            entry,
            "version",
            parameter,
            asked,
            unnamed,
            re.sub(r"(?<=\d\.\d)(\d*)\.0$", r"\1", found[0][1]),
            page,
            section,
            directive,
        )


# Questions that do not quote the name


def _quoted(entry: Entry, words: str) -> str:
    where = "NumPy" if entry.module.startswith("numpy") else "the standard library"
    return f"described in {where} in these words, among others: {words}"


def _descriptions(entries: Sequence[Entry]) -> dict[str, str]:
    """For each name some words of the first paragraph of its description that no other such paragraph has together, in
    alphabetical order. None is like a part of the name, and they are as common as possible: a search for them finds
    many pages, of which one has to be picked.

    Left out are those that would take more than `_MOST_WORDS` words.
    """
    paragraphs = {e.name: set(re.findall(r"[a-z]{4,}", e.doc.partition("\n\n")[0].lower())) for e in entries}
    homes: dict[str, set[str]] = defaultdict(set)
    for name, words in paragraphs.items():
        for word in words:
            homes[word].add(name)
    described = {}
    for name, words in paragraphs.items():
        own = {part[:4].lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
        told = list[str]()
        left = set(paragraphs)
        for word in sorted((w for w in words if w[:4] not in own), key=lambda w: (-len(homes[w]), w)):
            told.append(word)
            left &= homes[word]
            if len(left) == 1 and len(told) >= _FEWEST_WORDS:
                break
        if len(left) == 1 and _FEWEST_WORDS <= len(told) <= _MOST_WORDS:
            described[name] = " ".join(sorted(told))
    return described


_FEWEST_WORDS, _MOST_WORDS = 3, 8


def _name_words(fact: _Fact) -> tuple[str, ...]:
    """What to search for; first what the question itself says: nobody could learn to search for the answer."""
    name = fact.entry.name
    short = name.rpartition(".")[2]
    searched = (name, f"{short} {name.partition('.')[0]}", short)
    return (short, *searched[:2]) if fact.kind == "module" else searched


def _balanced(found: Sequence[Question]) -> list[Question]:
    """As many as fit, chosen by a hash: of each answer at most `MOST_SHARE` of what is chosen."""
    ranked = sorted(found, key=lambda question: derive_seed("rank", question.id))
    counts = Counter(question.answer for question in ranked)
    most = max(counts.values(), default=0)
    while most > 1 and most > MOST_SHARE * sum(min(count, most) for count in counts.values()):
        most -= 1
    taken: Counter[str] = Counter()
    chosen = []
    for question in ranked:
        if taken[question.answer] < most:
            taken[question.answer] += 1
            chosen.append(question)
    return chosen
