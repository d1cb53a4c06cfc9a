"""The kinds of instructions: how one is drawn, how it is said, and whether a text follows it.

The kinds are those of IFEval (Zhou et al. 2023, arXiv 2311.07911), the response's language left out. Texts are compared
without regard to upper and lower case, except by the kinds that are about it.
"""

import json
import random
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .words import COMMON, END, KEYS, NOUNS, OPENERS, START, of_split

Instruction = Mapping[str, Any]
"""A drawn instruction: its `kind`, and what that kind needs to know. Plain JSON."""


class Kind(NamedTuple):
    """One kind of instruction.

    Attributes:
        draw: what an instruction for the split needs to know, drawn at random.
        say: ways to say it, of which one is drawn.
        follows: does a text do as it says?
        apart: kinds that have one of these in common never meet in a task.
        idle: whoever ignores the instruction mostly follows it; a task has one such at most, and never alone.
    """

    draw: Callable[[random.Random, str], dict[str, Any]]
    say: Callable[[Instruction], tuple[str, ...]]
    follows: Callable[[str, Instruction], bool]
    apart: frozenset[str] = frozenset()
    idle: bool = False


# What texts are made of


def words(text: str) -> list[str]:
    """Letters and digits in a row; apostrophes and hyphens inside belong to the word."""
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def sentences(text: str) -> list[str]:
    """What ends with . ! or ?, or with its line, and has a word. The dots of "P.S." and "P.P.S." end nothing."""
    text = re.sub(r"\b((?:P\.)+)(S)\.", lambda m: m[0].replace(".", ""), text, flags=re.IGNORECASE)
    return [part for part in re.split(r"(?<=[.!?])[\"')*\]]*\s+|\n", text) if words(part)]


def paragraphs(text: str) -> list[str]:
    """What empty lines separate."""
    return [part for part in re.split(r"\n[ \t]*\n\s*", text.strip()) if part.strip()]


def occurrences(word: str, text: str) -> int:
    """How often a text has the word, as a whole word."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def json_object(text: str) -> dict[str, Any] | None:
    """The object that is all of the text, a fence around it aside."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text.strip(), re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# Checks that take more than a line


def _number_fits(count: int, instruction: Instruction) -> bool:
    return instruction.get("least", 0) <= count <= instruction.get("most", count)


def _has_keys(text: str, instruction: Instruction) -> bool:
    found = json_object(text)
    if found is None:
        return False
    return sorted(key.lower() for key in found) == sorted(instruction["keys"]) and all(found.values())


def _has_sections(text: str, instruction: Instruction) -> bool:
    _, *parts = re.split(r"^[ \t#*]*section[ \t]+(\d+)\b", text, flags=re.IGNORECASE | re.MULTILINE)
    numbers, bodies = parts[::2], parts[1::2]
    return numbers == [str(i + 1) for i in range(instruction["count"])] and all(map(words, bodies))


def _is_twice(text: str, instruction: Instruction) -> bool:
    parts = [part.strip() for part in re.split(r"(?<!\*)\*{6}(?!\*)", text)]
    return len(parts) == 2 and all(map(words, parts)) and parts[0].lower() != parts[1].lower()


def _has_title(text: str, instruction: Instruction) -> bool:
    titles = (title.strip().lower() for title in re.findall(r"<<([^<>\n]+)>>", text))
    return any(words(title) and title != "title" for title in titles)


def _paragraph_begins(text: str, instruction: Instruction) -> bool:
    found = paragraphs(text)
    if len(found) != instruction["count"]:
        return False
    first = words(found[instruction["number"] - 1])
    return bool(first) and first[0].lower() == instruction["word"].lower()


def _draw_words(rng: random.Random, split: str) -> dict[str, Any]:
    least = rng.randrange(15, 45, 5)
    return rng.choice([{"least": least}, {"least": least, "most": least + rng.choice((5, 10, 15))}])


def _draw_first(rng: random.Random, split: str) -> dict[str, Any]:
    count = rng.randint(2, 4)
    return {"count": count, "number": rng.randint(1, count), "word": rng.choice(of_split(OPENERS, split))}


def _draw_sentences(rng: random.Random, split: str) -> dict[str, Any]:
    least = rng.randint(2, 6)
    return rng.choice([{"least": least}, {"least": least, "most": least}])


def _listed(quoted: list[str]) -> str:
    return ", ".join(quoted[:-1]) + f" and {quoted[-1]}" if len(quoted) > 1 else quoted[0]


def _say_words(i: Instruction) -> tuple[str, ...]:
    if "most" in i:
        return f"Use {i['least']} to {i['most']} words.", f"Write between {i['least']} and {i['most']} words."
    return f"Use at least {i['least']} words.", f"Write {i['least']} words or more."


def _say_sentences(i: Instruction) -> tuple[str, ...]:
    if "most" in i:
        return f"Write exactly {i['least']} sentences.", f"Use {i['least']} sentences, no more and no less."
    return f"Write at least {i['least']} sentences.", f"Use {i['least']} sentences or more."


KINDS: dict[str, Kind] = {
    "keywords": Kind(
        lambda rng, split: {"words": rng.sample(of_split(NOUNS, split), rng.randint(1, 3))},
        lambda i: (f"Use {_listed(i['words'])} in it.", f"Mention {_listed(i['words'])}."),
        lambda text, i: all(occurrences(word, text) for word in i["words"]),
    ),
    "keyword_count": Kind(
        lambda rng, split: {"word": rng.choice(of_split(NOUNS, split)), "least": rng.randint(2, 4)},
        lambda i: (f"Use the word {i['word']} at least {i['least']} times.",),
        lambda text, i: occurrences(i["word"], text) >= i["least"],
    ),
    "forbidden": Kind(
        lambda rng, split: {"words": sorted(rng.sample(COMMON, rng.randint(2, 3)))},
        lambda i: (f"Do not use the words {_listed(i['words'])}.", f"Avoid the words {_listed(i['words'])}."),
        lambda text, i: not any(occurrences(word, text) for word in i["words"]),
        idle=True,
    ),
    "letter_count": Kind(
        lambda rng, split: {"letter": rng.choice("bfgjkpvwyz"), "least": rng.randint(3, 6)},
        lambda i: (f"Use the letter {i['letter']} at least {i['least']} times.",),
        lambda text, i: text.lower().count(i["letter"]) >= i["least"],
    ),
    "word_count": Kind(
        _draw_words, _say_words, lambda text, i: _number_fits(len(words(text)), i), frozenset({"length"})
    ),
    "few_words": Kind(
        lambda rng, split: {"most": rng.randrange(15, 45, 5)},
        lambda i: (f"Use at most {i['most']} words.", f"Do not write more than {i['most']} words."),
        lambda text, i: _number_fits(len(words(text)), i),
        frozenset({"length"}),
        idle=True,
    ),
    "sentence_count": Kind(
        _draw_sentences,
        _say_sentences,
        lambda text, i: _number_fits(len(sentences(text)), i),
        frozenset({"length", "prose"}),
    ),
    "paragraphs": Kind(
        lambda rng, split: {"count": rng.randint(2, 4)},
        lambda i: (f"Write {i['count']} paragraphs, separated by empty lines.",),
        lambda text, i: len(paragraphs(text)) == i["count"],
        frozenset({"layout"}),
    ),
    "paragraph_start": Kind(
        _draw_first,
        lambda i: (
            f"Write {i['count']} paragraphs, separated by empty lines. "
            f"Paragraph {i['number']} begins with the word {i['word']}.",
        ),
        _paragraph_begins,
        frozenset({"layout", "first", "title"}),
    ),
    "placeholders": Kind(
        lambda rng, split: {"least": rng.randint(2, 4)},
        lambda i: (f"Use at least {i['least']} placeholders in square brackets, like [name].",),
        lambda text, i: len(re.findall(r"\[[^\[\]\n]+\]", text)) >= i["least"],
    ),
    "postscript": Kind(
        lambda rng, split: {"mark": rng.choice(("P.S.", "P.P.S."))},
        lambda i: (f"Add a postscript on a line of its own that begins with {i['mark']}",),
        lambda text, i: bool(re.search(rf"^[ \t]*{re.escape(i['mark'])}.*\w", text, re.IGNORECASE | re.MULTILINE)),
        frozenset({"whole"}),
    ),
    "bullets": Kind(
        lambda rng, split: {"count": rng.randint(2, 5)},
        lambda i: (f"Write exactly {i['count']} bullet points, each a line that begins with *",),
        lambda text, i: len(re.findall(r"^[ \t]*[*-][ \t]+\S", text, re.MULTILINE)) == i["count"],
        frozenset({"layout"}),
    ),
    "highlights": Kind(
        lambda rng, split: {"least": rng.randint(2, 4)},
        lambda i: (f"Highlight at least {i['least']} parts with asterisks, like *this*.",),
        lambda text, i: len(re.findall(r"\*[^\s*](?:[^*\n]*[^\s*])?\*", text)) >= i["least"],
    ),
    "sections": Kind(
        lambda rng, split: {"count": rng.randint(2, 4)},
        lambda i: (f"Write {i['count']} sections. Begin them with Section 1, Section 2 and so on.",),
        _has_sections,
        frozenset({"layout", "first"}),
    ),
    "json": Kind(
        lambda rng, split: {"keys": sorted(rng.sample(KEYS, rng.randint(1, 3)))},
        lambda i: (
            f"Answer with nothing but a JSON object that has the key{'s' * (len(i['keys']) > 1)} {_listed(i['keys'])}.",
        ),
        _has_keys,
        frozenset({"layout", "first", "last", "whole", "prose"}),
    ),
    "title": Kind(
        lambda rng, split: {},
        lambda i: ("Give it a title in double angle brackets, like <<title>>.",),
        _has_title,
        frozenset({"whole", "title"}),
    ),
    "two_responses": Kind(
        lambda rng, split: {},
        lambda i: ("Give two different answers with ****** between them.",),
        _is_twice,
        frozenset({"layout"}),
    ),
    "repeat": Kind(
        lambda rng, split: {},
        lambda i: ("Begin with the first sentence of this request, word for word. Then answer.",),
        lambda text, i: (
            text.strip().lower().startswith(i["request"].lower()) and bool(words(text.strip()[len(i["request"]) :]))
        ),
        frozenset({"first"}),
    ),
    "start": Kind(
        lambda rng, split: {"phrase": rng.choice(of_split(START, split))},
        lambda i: (f'Begin with "{i["phrase"]}"',),
        lambda text, i: text.strip().lower().startswith(i["phrase"].lower()),
        frozenset({"first"}),
    ),
    "end": Kind(
        lambda rng, split: {"phrase": rng.choice(of_split(END, split))},
        lambda i: (f'End with "{i["phrase"]}"',),
        lambda text, i: text.strip().lower().endswith(i["phrase"].lower()),
        frozenset({"last"}),
    ),
    "quotation": Kind(
        lambda rng, split: {},
        lambda i: ("Put all of your answer in double quotation marks.",),
        lambda text, i: len(text.strip()) > 2 and text.strip()[0] == text.strip()[-1] == '"',
        frozenset({"first", "last"}),
    ),
    "capital_words": Kind(
        lambda rng, split: {"least": rng.randint(2, 4)},
        lambda i: (f"Write at least {i['least']} words in all capital letters.",),
        lambda text, i: sum(word.isupper() and len(word) > 1 for word in words(text)) >= i["least"],
        frozenset({"case"}),
    ),
    "all_capitals": Kind(
        lambda rng, split: {},
        lambda i: ("Use capital letters only.", "Write everything in capital letters."),
        lambda text, i: text.isupper(),
        frozenset({"case"}),
    ),
    "lower_case": Kind(
        lambda rng, split: {},
        lambda i: ("Use lower case only.", "Do not use any capital letters."),
        lambda text, i: text.islower(),
        frozenset({"case"}),
        idle=True,
    ),
    "no_commas": Kind(
        lambda rng, split: {},
        lambda i: ("Do not use any commas.", "Use no commas."),
        lambda text, i: "," not in text,
        frozenset({"prose"}),
        idle=True,
    ),
}


def follows(text: str, instruction: Instruction) -> bool:
    """Does a text follow the instruction? One without a word follows none."""
    return bool(words(text)) and KINDS[instruction["kind"]].follows(text, instruction)


def variants(text: str) -> list[str]:
    """The text, and what IFEval's loose accuracy tries: it without asterisks, its first line, its last, or both."""
    lines = text.strip().split("\n")
    cut = ["\n".join(part).strip() for part in (lines, lines[1:], lines[:-1], lines[1:-1])]
    return [text, *cut, *(part.replace("*", "") for part in cut)]
