"""Answers that follow all instructions of a task, composed by code."""

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

from .instructions import Instruction, follows
from .words import NOUNS, listed, of_split

_PLAIN = (
    "The {s} is {adjective}.",
    "The {s} looks {adjective} {when}.",
    "We saw the {s} {when}.",
    "My {who} loves the {s}.",
    "Our {who} works near the {s}.",
    "I found the {s} {adjective} and {other}.",
    "Come and see the {s} {when}.",
    "Nobody knows how {adjective} the {s} was {when}.",
    "The {s} seems {adjective} to my {who}.",
    "My {who} came to the {s} {when}.",
)
_ADJECTIVES = listed("quiet bright cold warm narrow empty hidden strange calm dusty green modest sturdy plain grand")
_OTHERS = listed("proud gloomy silent tidy simple dark charming lonely")
_WHEN = (
    "in spring",
    "at night",
    "before noon",
    "after dark",
    "on Sunday",
    "last winter",
    "every morning",
    "in the rain",
    "at dawn",
    "this year",
)
_WHO = listed("sister uncle neighbour teacher cousin doctor brother aunt friend grandmother")
_WITH = (
    "Beside it lay the {w}.",
    "Nobody forgot the {w}.",
    "My {who} brought the {w}.",
    "There we saw the {w} {when}.",
    "I remember the {w} as well.",
)
_MARKS = ("name", "date", "address", "price", "number", "time", "city", "colour")
_MOST = 15


def compose(request: str, subject: str, instructions: Sequence[Instruction], rng: random.Random) -> str | None:
    """A text about the subject that follows all instructions, as short as its first words allow.

    Returns:
        None if there is none up to 15 sentences that begins so; another `rng` may find one.
    """
    asked = {instruction["kind"]: instruction for instruction in instructions}
    sentences: list[str] = []
    rest = rng.getrandbits(32)
    while len(sentences) < _MOST:
        sentences.append(_sentence(subject, rng))
        text = _laid_out(request, subject, sentences, asked, random.Random(rest))
        if all(follows(text, instruction) for instruction in instructions):
            return text
    return None


def _sentence(subject: str, rng: random.Random) -> str:
    return _filled(rng.choice(_PLAIN), rng, s=subject)


def _filled(pattern: str, rng: random.Random, **blanks: str) -> str:
    adjective, other, when, who = map(rng.choice, (_ADJECTIVES, _OTHERS, _WHEN, _WHO))
    return pattern.format(adjective=adjective, other=other, when=when, who=who, **blanks)


def _required(asked: Mapping[str, Instruction], rng: random.Random) -> Iterator[str]:
    """Words that the text must have; those held out for evaluation only where they are asked for."""
    if "keywords" in asked:
        yield from asked["keywords"]["words"]
    if "keyword_count" in asked:
        yield from [asked["keyword_count"]["word"]] * asked["keyword_count"]["least"]
    if "letter_count" in asked:
        letter, missing = asked["letter_count"]["letter"], asked["letter_count"]["least"]
        having = [word for word in of_split(NOUNS, "train") if letter in word]
        while missing > 0:
            word = rng.choice(having)
            missing -= word.count(letter)
            yield word


def _laid_out(
    request: str, subject: str, sentences: list[str], asked: Mapping[str, Instruction], rng: random.Random
) -> str:
    """The text of these sentences and of those that the instructions ask for."""
    body = sentences + [_filled(rng.choice(_WITH), rng, w=word) for word in _required(asked, rng)]
    rng.shuffle(body)
    if "placeholders" in asked:
        marks = rng.sample(_MARKS, asked["placeholders"]["least"])
        body.append(f"Write to {' '.join(f'[{mark}]' for mark in marks)}.")
    if "highlights" in asked:
        body = _each(body, asked["highlights"]["least"], lambda word: f"*{word}*")
    if "capital_words" in asked:
        body = _each(body, asked["capital_words"]["least"], str.upper)
    return _cased(_framed(_blocks(body, asked), request, subject, asked, rng), asked)


def _each(body: list[str], count: int, change: Callable[[str], str]) -> list[str]:
    """The first `count` words that no mark touches, changed."""
    done = 0

    def once(match: re.Match[str]) -> str:
        nonlocal done
        done += 1
        return change(match[0]) if done <= count else match[0]

    return [re.sub(r"(?<![\w\[*])[A-Za-z]{2,}(?![\w\]*])", once, sentence) for sentence in body]


def _blocks(body: list[str], asked: Mapping[str, Instruction]) -> str:
    """The sentences in the layout that is asked for; an empty part where they do not suffice."""
    if "paragraphs" in asked:
        return "\n\n".join(_parts(body, asked["paragraphs"]["count"]))
    if "paragraph_start" in asked:
        start = asked["paragraph_start"]
        parts = _parts(body, start["count"])
        rest = parts[start["number"] - 1]
        parts[start["number"] - 1] = f"{start['word']} {rest if rest.startswith('I ') else rest[:1].lower() + rest[1:]}"
        return "\n\n".join(parts)
    if "bullets" in asked:
        return "\n".join(f"* {part}" for part in _parts(body, asked["bullets"]["count"]))
    if "sections" in asked:
        parts = _parts(body, asked["sections"]["count"])
        return "\n".join(f"Section {i}\n{part}" for i, part in enumerate(parts, 1))
    if "two_responses" in asked:
        return "\n******\n".join(_parts(body, 2))
    if "json" in asked:
        keys = asked["json"]["keys"]
        return json.dumps(dict(zip(keys, _parts(body, len(keys)), strict=True)))
    return " ".join(body)


def _parts(body: list[str], count: int) -> list[str]:
    """The sentences, divided evenly and in order."""
    ends = [len(body) * i // count for i in range(count + 1)]
    return [" ".join(body[start:end]) for start, end in pairwise(ends)]


def _framed(text: str, request: str, subject: str, asked: Mapping[str, Instruction], rng: random.Random) -> str:
    """What comes before and after the text."""
    if "title" in asked:
        text = f"<<The {rng.choice(_ADJECTIVES)} {subject}>>\n{text}"
    if "start" in asked:
        text = f"{asked['start']['phrase']} {text}"
    if "repeat" in asked:
        text = f"{request}\n{text}"
    if "postscript" in asked:
        text += f"\n{asked['postscript']['mark']} {_sentence(subject, rng)}"
    if "end" in asked:
        text += f" {asked['end']['phrase']}"
    return f'"{text}"' if "quotation" in asked else text


def _cased(text: str, asked: Mapping[str, Instruction]) -> str:
    if "all_capitals" in asked:
        return text.upper()
    return text.lower() if "lower_case" in asked else text
