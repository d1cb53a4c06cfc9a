"""What follows an instruction and what does not, and what is asked, in `ifeval`."""

import re
from collections import Counter
from typing import Any

import pytest

from envs import ConfigError, ScriptedClient, Task, TasksetError, Trajectory, load_environment, run_task

ENVIRONMENT = load_environment("ifeval", train_tasks=400, eval_tasks=128)
HERE = "Write a note about the mill."


async def say(text: str, *instructions: dict[str, Any]) -> Trajectory:
    task = Task.ask("a", HERE, subject="mill", request=HERE, instructions=list(instructions))
    record = await run_task(ENVIRONMENT, task, ScriptedClient([text]))
    assert record.failure is None, record.failure
    return record


# kind, what it needs to know, a text that follows it, texts that do not
CASES: list[tuple[str, dict[str, Any], str, list[str]]] = [
    ("keywords", {"words": ["kite", "fox"]}, "A Fox. A kite!", ["A kite.", "foxes and kites", "foxtrot kite"]),
    ("keyword_count", {"word": "fox", "least": 2}, "Fox, fox.", ["A fox.", "A fox and a foxglove."]),
    ("forbidden", {"words": ["new", "old"]}, "News of gold.", ["An Old mill.", "new."]),
    ("letter_count", {"letter": "b", "least": 3}, "Bob and b", ["Bob", "d d d"]),
    ("word_count", {"least": 3}, "It's twenty-one miles", ["It's twenty-one", "- - - a b"]),
    ("word_count", {"least": 2, "most": 3}, "one two three", ["one", "one two three four"]),
    ("few_words", {"most": 3}, "one two three", ["one two three four"]),
    ("sentence_count", {"least": 2}, "One. Two three?", ["One, two.", "One 2.5 two"]),
    ("sentence_count", {"least": 2, "most": 2}, 'One at 3.5 m. "Two!"', ["One. Two. Three.", "Title\nOne. Two."]),
    ("sentence_count", {"least": 2, "most": 2}, "One.\nP.P.S. Two.", ["P.S. One."]),
    ("paragraphs", {"count": 2}, "One\none\n \nTwo", ["One\nTwo", "One\n\nTwo\n\nThree"]),
    ("paragraph_start", {"count": 2, "number": 2, "word": "Once"}, "A\n\n'Once b", ["Once\n\nb", "A\n\nB\n\nOnce"]),
    ("placeholders", {"least": 2}, "[name] in [the town]", ["[name]", "[] [name]", "[[name]]"]),
    ("postscript", {"mark": "P.S."}, "Hello.\np.s. Bye", ["Hello. P.S. Bye", "Hello.\nP.S.", "P.P.S. Hello"]),
    ("bullets", {"count": 2}, "So:\n* one\n- two", ["* one", "* one\n* two\n* three", "*one\n*two"]),
    ("highlights", {"least": 2}, "*One two* and **three**", ["*One*", "* one\n* two\n* three", "*One * two * three*"]),
    ("sections", {"count": 2}, "Section 1\na\n## Section 2: b", ["Section 1\na", "Section 1\nSection 2\nb"]),
    ("sections", {"count": 2}, "section 1 a\nsection 2 b", ["Section 2\na\nSection 1\nb", "Section 1 a Section 2 b"]),
    (
        "json",
        {"keys": ["mood", "text"]},
        '{"text": "a", "Mood": ["b"]}',
        ['{"text": "a"}', '{"text": "a", "mood": ""}'],
    ),
    ("json", {"keys": ["text"]}, '```json\n{"text": "a"}\n```', ['So: {"text": "a"}', "{'text': 'a'}", '["text"]']),
    ("title", {}, "Hello\n<<The mill>>", ["The mill", "<<title>>", "<< >>a", "<The mill>"]),
    ("two_responses", {}, "One\n******\nTwo", ["One\n***\nTwo", "One\n******\none", "a******b******c", "One******"]),
    ("repeat", {"request": HERE}, f"{HERE} It is old.", [HERE, f"So: {HERE} It is.", "It is old."]),
    ("start", {"phrase": "Dear reader,"}, "dear reader, hello", ["Hello, dear reader,"]),
    ("end", {"phrase": "That is all."}, "Hello. That is all.\n", ["That is all. Hello."]),
    ("quotation", {}, '"Hello."', ["'Hello.'", 'She said "hello"', '"']),
    ("capital_words", {"least": 2}, "An OLD MILL", ["A OLD mill", "I A OLD"]),
    ("all_capitals", {}, "AN OLD MILL, 3", ["An OLD MILL", "3"]),
    ("lower_case", {}, "an old mill, 3", ["An old mill", "3"]),
    ("no_commas", {}, "One; two", ["One, two"]),
]


@pytest.mark.parametrize(("kind", "knows", "good", "bad"), CASES, ids=[case[0] for case in CASES])
async def test_a_kind_knows_who_follows_it(kind: str, knows: dict[str, Any], good: str, bad: list[str]) -> None:
    assert (await say(good, {"kind": kind, **knows})).reward == 1.0
    for text in [*bad, "", " \n*!*"]:
        assert (await say(text, {"kind": kind, **knows})).reward == 0.0, text


def test_every_kind_has_a_case_and_is_asked() -> None:
    asked = Counter(i["kind"] for task in ENVIRONMENT.tasks.split("train") for i in task.info["instructions"])
    assert set(asked) == {case[0] for case in CASES} and len(asked) == 25
    assert min(asked.values()) >= 8


async def test_the_share_is_the_reward_and_all_of_them_the_metric() -> None:
    three: list[dict[str, Any]] = [
        {"kind": "no_commas"},
        {"kind": "bullets", "count": 2},
        {"kind": "end", "phrase": "The end."},
    ]
    record = await say("* the mill\n* a wheel", *three)
    assert record.reward == pytest.approx(2 / 3) and record.metrics["all_followed"] == 0.0
    record = await say("* the mill\n* a wheel. The end.", *three)
    assert record.reward == 1.0 and record.metrics["all_followed"] == 1.0 and record.metrics["names_subject"] == 1.0
    assert (await say("* a\n* b\nThe end.", *three)).metrics["names_subject"] == 0.0


@pytest.mark.parametrize(
    "text", ["Sure, here:\nhello. The end.\nGood, is it?", "**hello\nThe end.**", "hello\nThe end.\nOK?"]
)
async def test_loosely_a_line_before_or_after_or_asterisks_do_not_count(text: str) -> None:
    record = await say(text, {"kind": "no_commas"}, {"kind": "end", "phrase": "The end."})
    assert (record.metrics["all_followed"], record.metrics["all_followed_loosely"]) == (0.0, 1.0)


async def test_every_demonstrator_follows_all_in_words_of_its_own() -> None:
    task = ENVIRONMENT.tasks.split("train")[0]
    assert len({shown(task, sample) for sample in range(8)}) >= 4 and shown(task, 2) == shown(task, 2)
    for task in ENVIRONMENT.tasks:
        record = await run_task(ENVIRONMENT, task, ScriptedClient([shown(task, 1)]))
        assert record.metrics["all_followed"] == 1.0, (task, shown(task, 1))


def shown(task: Task, sample: int) -> str:
    return str(ENVIRONMENT.demonstration(task, sample)[0]["content"])


def drawn(task: Task) -> set[str]:
    """The subject of a task, and the keywords, openers and phrases of its instructions."""
    found = {task.info["subject"]}
    for instruction in task.info["instructions"]:
        found |= {instruction[key] for key in ("phrase", "word") if key in instruction}
        found |= set(instruction["words"]) if instruction["kind"] == "keywords" else set()
    return found


def test_nothing_held_out_is_trained_on_under_any_seed() -> None:
    train = set().union(*map(drawn, ENVIRONMENT.tasks.split("train")))
    held_out = set().union(*map(drawn, load_environment("ifeval", seed=5).tasks.split("eval")))
    assert len(held_out) > 50 and train.isdisjoint(held_out)
    words = {
        word for task in ENVIRONMENT.tasks.split("train") for word in re.findall(r"[a-z]+", shown(task, 3).lower())
    }
    assert len(words) > 100 and words.isdisjoint(word for word in held_out if word.islower() and word.isalpha())


def test_few_kinds_are_a_curriculum() -> None:
    tasks = load_environment("ifeval", kinds=["bullets", "lower_case"], train_tasks=60).tasks.split("train")
    asked = Counter(tuple(sorted(i["kind"] for i in task.info["instructions"])) for task in tasks)
    assert set(asked) == {("bullets",), ("bullets", "lower_case")}, "never what silence would follow alone"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ["bullet"]}, "unknown kind of instruction 'bullet'; did you mean 'bullets'"),
        ({"kinds": ["no_commas"]}, "doing nothing follows all of these; add one of keywords"),
        ({"max_instructions": 0}, "expected positive numbers"),
        ({"kinds": ["two_responses"], "train_tasks": 5000}, "ask for fewer"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, TasksetError), match=message):
        len(load_environment("ifeval", **arguments).tasks)
