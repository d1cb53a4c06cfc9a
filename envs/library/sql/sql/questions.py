"""What is asked: kinds of questions with their queries, filled in with what is in the tables."""

import random
from collections.abc import Mapping
from functools import cache

from .tables import MAJOR, Row, rows

SCHEMA = """\
Answer with one SQL query (SQLite) in a ```sql block. Its rows are compared with the right ones: give the columns that
are asked for, in that order; the order of rows counts only where one is asked for. The tables:

characters(code, name, script, category, direction, mirrored, value, lower): the characters of Unicode; name like 'GREEK
  SMALL LETTER ALPHA', script is its first word ('GREEK'), category like 'Ll', mirrored 0 or 1, value is the number that
  it stands for or null, lower the code of its lowercase letter or null
categories(category, meaning, major): for example 'Ll', 'lowercase letter', 'letter'
entities(entity, code): names of characters in HTML, like 'alpha'; a character has none, one or several"""

# What stands in braces is filled in. Queries with an order are compared in it.
JOINED = "characters join categories using (category)"
KINDS: tuple[tuple[str, str], ...] = (
    (
        "How many characters of the script {script} have a category whose meaning is '{meaning}'?",
        "select count(*) from {joined} where script = '{script}' and meaning = '{meaning}'",
    ),
    (
        "For each major kind of category: how many characters of the script {script} are there? Give major and "
        "number, without kinds that have none.",
        "select major, count(*) from {joined} where script = '{script}' group by major",
    ),
    (
        "Which {n} scripts have the most characters of the category meaning '{meaning}'? Give script and number, most "
        "first, equal ones by script.",
        "select script, count(*) from {joined} where meaning = '{meaning}' "
        "group by script order by count(*) desc, script limit {n}",
    ),
    (
        "Which characters of the script {script} have an entity in HTML? Give name and entity.",
        "select name, entity from characters join entities using (code) where script = '{script}'",
    ),
    (
        "Which characters of major kind '{major}' have at least {n} entities in HTML? Give name and number of "
        "entities.",
        "select name, count(*) from {joined} join entities using (code) "
        "where major = '{major}' group by code having count(*) >= {n}",
    ),
    (
        "What are the lowest and the highest code of a character of the script {script} and the major kind '{major}'?",
        "select min(code), max(code) from {joined} where script = '{script}' and major = '{major}'",
    ),
    (
        "How many characters whose name contains the word {word} have the category meaning '{meaning}'? A word stands "
        "between spaces, or at the beginning or the end of the name.",
        "select count(*) from {joined} where ' ' || name || ' ' like '% {word} %' and meaning = '{meaning}'",
    ),
    (
        "What is the average value of those characters of the script {script} that have a value above {n}?",
        "select avg(value) from characters where script = '{script}' and value > {n}",
    ),
    (
        "What are the meanings of the categories of major kind '{major}' that no character of the script {script} has?",
        "select meaning from categories where major = '{major}' and category not in "
        "(select category from characters where script = '{script}')",
    ),
    (
        "Which characters of the script {script} have a lowercase letter of another script? Give both names, the one "
        "of the lowercase letter second.",
        "select a.name, b.name from characters a join characters b on a.lower = b.code "
        "where a.script = '{script}' and b.script <> a.script",
    ),
    (
        "How many entities in HTML name characters of the category meaning '{meaning}' with the word {word} in their "
        "name? A word stands between spaces, or at the beginning or the end of the name.",
        "select count(*) from entities join characters using (code) join categories using (category) "
        "where ' ' || name || ' ' like '% {word} %' and meaning = '{meaning}'",
    ),
    (
        "Which scripts have more than {n} characters in the category meaning '{meaning}' and none whose major kind is "
        "'{other}'?",
        "select script from {joined} group by script "
        "having sum(meaning = '{meaning}') > {n} and sum(major = '{other}') = 0",
    ),
    (
        "Which names of characters of the script {script} contain the word {word}? List them from the longest to the "
        "shortest, equal ones alphabetically, at most {n}. A word stands between spaces, or at the beginning or the "
        "end of the name.",
        "select name from characters where script = '{script}' and ' ' || name || ' ' like '% {word} %' "
        "order by length(name) desc, name limit {n}",
    ),
)


@cache
def _characters() -> Mapping[str, list[Row]]:
    """By script: meaning, major and name of every character, for scripts of some size."""
    found: dict[str, list[Row]] = {}
    for script, *rest in rows(f"select script, meaning, major, name from {JOINED} order by code"):
        found.setdefault(str(script), []).append(tuple(rest))
    return {script: characters for script, characters in found.items() if len(characters) >= 10}


def asked(draw: random.Random) -> tuple[str, str]:
    """A question and its query, made around a character, so that most have an answer."""
    question, query = draw.choice(KINDS)
    script = draw.choice(list(_characters()))
    meaning, major, name = map(str, draw.choice(_characters()[script]))
    words = [word for word in name.split() if word.isalpha()]
    other = draw.choice([kind for kind in MAJOR.values() if kind != major])
    blanks = {"script": script, "meaning": meaning, "major": major, "other": other}
    blanks |= {"word": draw.choice(words), "n": str(draw.randint(2, 12))}
    return question.format(**blanks), query.format(joined=JOINED, **blanks)
