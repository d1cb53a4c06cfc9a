"""The game, its words and its rewards, through what users of `wordle` call."""

import math
from types import SimpleNamespace

import pytest

from envs import ConfigError, Environment, Message, ScriptedClient, Task, Trajectory, load_environment, run_task


async def play(secret: str, *says: str, **arguments: object) -> Trajectory:
    """A game about `secret` in which the model says one thing after the other, the last one again and again."""
    environment = load_environment("wordle", **arguments)
    task = Task.ask(secret, "Guess!", secret, max_guesses=arguments.get("max_guesses", 6), secrets=1600)
    script = iter(says)
    trajectory = await run_task(environment, task, ScriptedClient(lambda messages: next(script, says[-1])))
    assert trajectory.failure is None, trajectory.failure
    return trajectory


def replies(trajectory: Trajectory) -> list[str | None]:
    """What the game said after each guess."""
    return [message["content"] for message in trajectory.messages[1:] if message["role"] == "user"]


@pytest.mark.parametrize(
    ("secret", "guess", "marks"),
    [
        ("house", "light", "X X X Y X"),
        ("house", "shone", "Y Y Y X G"),
        ("erase", "speed", "Y X Y Y X"),  # two e in both: both yellow
        ("speed", "erase", "Y X X Y Y"),
        ("crepe", "speed", "X Y G Y X"),  # the first e is green and the second yellow
        ("speck", "speed", "G G G X X"),  # only one e in the secret: the green one takes it
        ("apple", "allee", "G Y X X G"),  # one l and one e in the secret: the first l, the green e
        ("eerie", "geese", "X G Y X G"),  # three e, two of them green: the third is yellow
        ("abbey", "babes", "Y Y G G X"),
        ("abbey", "kebab", "X Y G Y Y"),
        ("pupil", "puppy", "G G G X X"),
        ("llama", "allay", "Y G Y Y X"),
    ],
)
async def test_marks_follow_the_original_rules(secret: str, guess: str, marks: str) -> None:
    trajectory = await play(secret, f"<guess>{guess}</guess>", secret)
    assert replies(trajectory) == [f"{' '.join(guess.upper())}\n{marks}\nGuesses left: 5"]
    assert trajectory.rewards["solved"] == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "house",
        " HOUSE\n",
        "<guess>house</guess>",
        "So <guess> House </guess>.",
        "<guess>no</guess><guess>house</guess>",
    ],
)
async def test_a_guess_is_the_last_tag_or_the_whole_message(text: str) -> None:
    trajectory = await play("house", text)
    assert trajectory.rewards["solved"] == 1.0 and len(trajectory.turns) == 1


@pytest.mark.parametrize(
    "text", ["", "house!", "My guess is house", "<guess>houses</guess> house", "zzzzz", "<guess></guess>", "hóuse"]
)
async def test_anything_else_costs_a_turn_and_no_guess(text: str) -> None:
    trajectory = await play("house", text, "house")
    (reply,) = replies(trajectory)
    assert reply is not None and reply.startswith("That is not a valid guess.") and reply.endswith("Guesses left: 6")
    assert trajectory.rewards == {"solved": 1.0, "speed": 1.0, "valid_guesses": 0.5}
    assert trajectory.metrics["guesses_used"] == 1.0


async def test_finding_the_word_at_once_is_worth_most() -> None:
    trajectory = await play("house", "house")
    assert trajectory.reward == pytest.approx(1.0 + 0.2 + 0.1)
    assert trajectory.metrics["bits_per_guess"] == pytest.approx(math.log2(1600))
    assert trajectory.stop == "completed"


async def test_later_is_worth_less() -> None:
    trajectory = await play("house", "light", "shone", "house")
    assert trajectory.rewards == {"solved": 1.0, "speed": pytest.approx(4 / 6), "valid_guesses": 1.0}
    assert trajectory.metrics["guesses_used"] == 3.0
    assert trajectory.metrics["bits_per_guess"] == pytest.approx(math.log2(1600) / 3)


async def test_six_wrong_guesses_lose() -> None:
    trajectory = await play("house", "light")
    assert len(trajectory.turns) == 6 and trajectory.stop == "completed"
    assert trajectory.reward == pytest.approx(0.1)
    assert replies(trajectory)[-1] == "L I G H T\nX X X Y X\nGuesses left: 1"
    assert 0 < trajectory.metrics["bits_per_guess"] < 2  # the first guess told something, its repetition nothing


async def test_nonsense_ends_and_earns_nothing() -> None:
    trajectory = await play("house", "I would rather not.")
    assert len(trajectory.turns) == 8  # 6 guesses and 2 spare turns
    assert trajectory.reward == 0.0
    assert trajectory.metrics == {"guesses_used": 0.0, "bits_per_guess": 0.0}


async def test_spare_turns_that_are_used_up_cost_guesses() -> None:
    trajectory = await play("house", "no", "no", "no", "light", max_guesses=3, spare_turns=1)
    assert [str(reply)[-1] for reply in replies(trajectory)] == ["3", "2", "1"]
    assert len(trajectory.turns) == 4


async def test_a_recorded_game_scores_the_same() -> None:
    trajectory = await play("house", "light", "what?", "shone", "house")
    recorded = Trajectory.from_json(trajectory.to_json())
    recorded.rewards, recorded.metrics, recorded.reward = {}, {}, None
    environment = load_environment("wordle")
    await environment.rubric.score(recorded, SimpleNamespace())
    assert recorded.to_dict() == trajectory.to_dict()


@pytest.mark.parametrize("sample", [0, 1])
async def test_experts_play_by_the_rules_and_mostly_win(sample: int) -> None:
    environment = load_environment("wordle")
    games = [await replay(environment, task, sample) for task in environment.tasks.split("eval").head(64)]
    assert all(game.rewards["valid_guesses"] == 1.0 for game in games)
    assert sum(game.rewards["solved"] for game in games) >= 0.8 * len(games)
    assert all(game.metrics["bits_per_guess"] > 1.0 for game in games)


def test_every_expert_plays_in_a_way_of_its_own() -> None:
    environment = load_environment("wordle")
    first, second = environment.tasks.split("train").head(2)

    def opening(task: Task, sample: int) -> Message:
        return environment.demonstration(task, sample)[0]

    assert opening(first, 0) == opening(second, 0)  # the most frequent word
    assert len({str(opening(task, sample)) for task in (first, second) for sample in range(1, 4)}) > 4
    assert opening(first, 2) == opening(first, 2)


def test_experts_guess_frequent_words_more_often() -> None:
    environment = load_environment("wordle")
    frequent = {f"<guess>{task.answer}</guess>" for task in load_environment("wordle", secrets=160).tasks}
    opening = [environment.demonstration(task, 1)[0]["content"] for task in environment.tasks.head(400)]
    assert sum(guess in frequent for guess in opening) > len(opening) / 4  # of a tenth of the words


async def replay(environment: Environment, task: Task, sample: int) -> Trajectory:
    """A rollout that follows a demonstration; the game must say what the demonstration has it say."""
    shown = environment.demonstration(task, sample)
    client = ScriptedClient([str(message["content"]) for message in shown if message["role"] == "assistant"])
    trajectory = await run_task(environment, task, client)
    assert trajectory.messages == [*task.prompt, *shown]
    return trajectory


def test_secrets_are_english_words_in_disjoint_splits() -> None:
    tasks = load_environment("wordle", eval_tasks=None).tasks
    train, held_out = ({task.answer for task in tasks.split(split)} for split in ("train", "eval"))
    assert len(train) + len(held_out) == 1600 and len(held_out) == 330
    assert train.isdisjoint(held_out)
    assert {"house", "crane", "david", "paris", "didnt"} & (train | held_out) == {"house"}
    fewer = load_environment("wordle", secrets=400, seed=5).tasks
    assert {task.answer for task in fewer.split("train")} < train
    assert {task.answer for task in fewer.split("eval")} < held_out


def test_the_prompt_tells_the_rules_and_not_the_secret() -> None:
    task = load_environment("wordle", max_guesses=4).tasks[0]
    (message,) = task.prompt
    text = str(message["content"])
    assert "You have 4 guesses" in text and task.answer not in text
    assert load_environment("wordle", rules="{guesses}!").tasks[0].prompt[0]["content"] == "6!"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_guesses": 0}, "at least 1"),
        ({"spare_turns": -1}, "at least 0"),
        ({"secrets": 10**6}, "proper English"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        len(load_environment("wordle", **arguments).tasks)
