"""Texts and rewards of `reverse_text`, through what its users call."""

import pytest

from envs import ConfigError, Environment, ScriptedClient, Task, Trajectory, load_environment, run_task

ARGUMENTS = [
    {},
    {"min_length": 3, "max_length": 4, "seed": 7},
    {"unit": "phrase", "min_length": 8, "max_length": 16, "eval_tasks": None},
]


def text_of(task: Task) -> str:
    return str(task.prompt[-1]["content"])


async def say(completion: str, text: str, environment: Environment) -> Trajectory:
    task = Task.ask(text, text, text[::-1])
    return await run_task(environment, task, ScriptedClient([completion]))


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_every_text_is_english_of_the_lengths_asked_for(arguments: dict[str, object]) -> None:
    environment = load_environment("reverse_text", **arguments)
    low, high = arguments.get("min_length", 3), arguments.get("max_length", 6)
    assert isinstance(low, int) and isinstance(high, int)
    for task in environment.tasks:
        text = text_of(task)
        assert low <= len(text) <= high
        assert text.replace(" ", "").isascii() and text.replace(" ", "").isalpha() and text.islower()
        assert " " not in text or arguments.get("unit") == "phrase"
        assert task.answer == text[::-1] != text


def test_there_are_enough_texts_in_any_supported_python() -> None:
    tasks = load_environment("reverse_text").tasks
    assert len(tasks.split("train")) > 500 and len(tasks.split("eval")) > 150
    assert {"about", "thread", "write"} <= {text_of(task) for task in tasks}  # words no standard library is without


def test_no_argument_moves_a_text_to_the_other_split() -> None:
    texts: dict[str, set[str]] = {"train": set(), "eval": set()}
    for arguments in ({}, {"max_length": 12, "eval_tasks": None}, {"seed": 3, "max_length": 8, "eval_tasks": 10}):
        tasks = load_environment("reverse_text", **arguments).tasks
        for split, seen in texts.items():
            found = [text_of(task) for task in tasks.split(split)]
            assert len(found) == len(set(found))
            seen.update(found)
    assert texts["train"].isdisjoint(texts["eval"])


def test_the_same_arguments_make_the_same_tasks_and_another_seed_another_order() -> None:
    def ids(seed: int, train_tasks: int | None = None) -> list[str]:
        environment = load_environment("reverse_text", seed=seed, train_tasks=train_tasks)
        return [task.id for task in environment.tasks.split("train")]

    assert ids(0) == ids(0)
    assert ids(0) != ids(1) and sorted(ids(0)) == sorted(ids(1))
    assert ids(0, train_tasks=20) == ids(0)[:20]


@pytest.mark.parametrize(
    ("completion", "similarity", "exact"),
    [
        ("olleh", 1.0, 1.0),
        ("  olleh\n", 1.0, 1.0),
        ("OLLEH", 0.0, 0.0),
        ("oleh", 4 / 5, 0.0),  # one too few
        ("ollleh", 5 / 6, 0.0),  # one too many
        ("hello", 2 / 5, 0.0),  # copied: only `ll` is in order
        ("o", 1 / 5, 0.0),
        ("olleholleh", 1 / 2, 0.0),
        ("abcdefghijklmnopqrstuvwxyz" * 5, 5 / 130, 0.0),
        ("", 0.0, 0.0),
    ],
)
async def test_similarity_counts_what_is_in_order_and_punishes_what_is_too_much(
    completion: str, similarity: float, exact: float
) -> None:
    trajectory = await say(completion, "hello", load_environment("reverse_text"))
    assert trajectory.reward == trajectory.rewards["similarity"] == pytest.approx(similarity)
    assert trajectory.metrics == {"exact_match": exact}


async def test_exact_weight_divides_the_reward() -> None:
    environment = load_environment("reverse_text", exact_weight=0.25)
    assert (await say("olleh", "hello", environment)).reward == pytest.approx(1.0)
    assert (await say("oleh", "hello", environment)).reward == pytest.approx(0.75 * 0.8)


@pytest.mark.parametrize(("clean", "low", "high"), [(0.0, 0.0, 0.0), (0.4, 0.3, 0.5), (1.0, 1.0, 1.0)])
def test_demonstrations_are_right_or_copies(clean: float, low: float, high: float) -> None:
    environment = load_environment("reverse_text", clean_demonstrations=clean)
    tasks = environment.tasks.split("train")
    shown = [environment.demonstration(task)[-1]["content"] for task in tasks]
    assert all(text in (task.answer, text_of(task)) for text, task in zip(shown, tasks, strict=True))
    right = sum(text == task.answer for text, task in zip(shown, tasks, strict=True)) / len(tasks)
    assert low <= right <= high
    assert shown == [environment.demonstration(task)[-1]["content"] for task in tasks]


def test_the_prompt_is_the_text_after_an_optional_system_message() -> None:
    (message,) = load_environment("reverse_text").tasks[0].prompt
    assert message["role"] == "user"
    system, user = load_environment("reverse_text", system="Reverse it.").tasks[0].prompt
    assert system == {"role": "system", "content": "Reverse it."}
    assert user == message


def test_tasks_name_the_corpus_they_come_from() -> None:
    (digest,) = {task.info["corpus"] for task in load_environment("reverse_text").tasks}
    assert len(digest) == 12 and int(digest, 16) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_length": 6, "max_length": 3}, "min_length <= max_length"),
        ({"exact_weight": 1.5}, "exact_weight is 1.5"),
        ({"unit": "letter"}, "'word', 'phrase'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_environment("reverse_text", **arguments)
