"""Wordle: find a secret word of five letters, told after every guess which of its letters fit.

Native rules, repeated letters included. The conversation is the only state: the game's replies, the rewards and the
metrics are functions of the messages, so that a recorded game can be scored again.

A message without a valid guess costs no guess, as in the original, but it costs a turn, and there are only
`spare_turns` more turns than guesses. So every game ends.
"""

import math
import random
import re
from codecs import decode
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Literal

import wordfreq

from envs import ConfigError, Environment, Message, Rollout, Rubric, Task, Taskset, derive_seed, multi_turn

RULES = """\
Find a secret English word of five letters. You have {guesses} guesses. Write each guess like this: <guess>crane</guess>

After a guess you see a mark under each of its letters:
G: the secret word has this letter here
Y: the secret word has this letter elsewhere
X: the secret word does not have this letter, or not as often"""

INVALID = "That is not a valid guess. Write one English word of five letters like this: <guess>crane</guess>"


def load_environment(
    max_guesses: int = 6,
    spare_turns: int = 2,
    secrets: int = 1600,
    train_tasks: int | None = None,
    eval_tasks: int | None = 256,
    rules: str = RULES,
    seed: int = 0,
) -> Environment:
    """Wordle whose secrets are frequent English words.

    Args:
        max_guesses: guesses until the game is lost.
        spare_turns: turns beyond `max_guesses`, for messages without a valid guess.
        secrets: how many words can be the secret, the most frequent ones; a fifth of them is for evaluation.
        train_tasks: at most this many tasks to train on; None takes all there are.
        eval_tasks: at most this many tasks to evaluate on; None takes all there are.
        rules: the message that opens the game; `{guesses}` stands for `max_guesses`.
        seed: decides the order of the tasks.
    """
    if max_guesses < 1 or spare_turns < 0:
        raise ConfigError(f"max_guesses={max_guesses}, spare_turns={spare_turns}; expected at least 1 and at least 0")
    most = {"train": train_tasks, "eval": eval_tasks}
    opening = rules.replace("{guesses}", str(max_guesses))

    def tasks(split: str) -> list[Task]:
        chosen = [word for word in secret_words(secrets) if split_of(word) == split]
        chosen.sort(key=lambda word: derive_seed(seed, word))
        return [
            Task.ask(word, opening, word, max_guesses=max_guesses, secrets=secrets) for word in chosen[: most[split]]
        ]

    def respond(rollout: Rollout) -> str | None:
        return reply(guesses_in(rollout.messages), rollout.task.answer, max_guesses, spare_turns)

    def demonstrate(task: Task, sample: int) -> list[Message]:
        """A game of somebody who guesses words that are still possible: demonstrator 0 the most frequent one, each of
        the others any, the more frequent the likelier, for one who always decides alike can be learned by heart."""
        messages: list[Message] = []
        possible = list(secret_words(secrets))
        frequency = valid_words()
        rng = random.Random(derive_seed("demonstrate", sample, task.id))
        while True:
            (guess,) = rng.choices(possible, [frequency[word] for word in possible]) if sample else possible[:1]
            messages.append({"role": "assistant", "content": f"<guess>{guess}</guess>"})
            said = reply(guesses_in(messages), task.answer, max_guesses, spare_turns)
            if said is None:
                return messages
            messages.append({"role": "user", "content": said})
            possible = still_possible(possible, [guess], task.answer)

    return Environment(
        tasks=Taskset.from_function(tasks),
        harness=multi_turn(respond, max_turns=max_guesses + spare_turns),
        rubric=Rubric({solved: 1.0, speed: 0.2, valid_guesses: 0.1, guesses_used: 0.0, bits_per_guess: 0.0}),
        demonstrate=demonstrate,
    )


# The game. Guesses are one per turn of the model, None where it made no valid one.

Guesses = Sequence[str | None]


def reply(guesses: Guesses, answer: str, max_guesses: int, spare_turns: int) -> str | None:
    """What the game says to the last guess; None if that was the end."""
    valid = [guess for guess in guesses if guess]
    left = min(max_guesses - len(valid), max_guesses + spare_turns - len(guesses))
    if answer in valid or left == 0:
        return None
    guess = guesses[-1]
    said = f"{' '.join(guess.upper())}\n{' '.join(marks(guess, answer))}" if guess else INVALID
    return f"{said}\nGuesses left: {left}"


@lru_cache(maxsize=100_000)
def marks(guess: str, answer: str) -> str:
    """G, Y or X per letter. What is not green in the answer makes yellows, each letter once, from left to right."""
    rest = [a for g, a in zip(guess, answer, strict=True) if g != a]
    result = ""
    for g, a in zip(guess, answer, strict=True):
        if g == a:
            result += "G"
        elif g in rest:
            rest.remove(g)
            result += "Y"
        else:
            result += "X"
    return result


def still_possible(words: Iterable[str], guesses: Guesses, answer: str) -> list[str]:
    """Those of `words` that fit all that the guesses revealed."""
    possible = list(words)
    for guess in filter(None, guesses):
        seen = marks(guess, answer)
        possible = [word for word in possible if marks(guess, word) == seen]
    return possible


def guess_in(text: str) -> str | None:
    """The guess of a message: what its last `<guess>` tag holds or, if it has none, all of it.

    Case and surrounding white space do not matter. Anything else than one of `valid_words` is no guess.
    """
    tagged = re.findall(r"<guess>(.*?)</guess>", text, re.DOTALL)
    word = (tagged[-1] if tagged else text).strip().lower()
    return word if word in valid_words() else None


def guesses_in(messages: Sequence[Message]) -> list[str | None]:
    return [guess_in(message["content"] or "") for message in messages if message["role"] == "assistant"]


# Rewards and metrics


def solved(messages: Sequence[Message], answer: str) -> float:
    """1 if the word was found, else 0."""
    return float(answer in guesses_in(messages))


def speed(messages: Sequence[Message], answer: str, info: Mapping[str, int]) -> float:
    """From 1 for a word found at once down to 1 / max_guesses at the last guess; 0 if it was not found."""
    return (1 - (guesses_used(messages) - 1) / info["max_guesses"]) * solved(messages, answer)


def valid_guesses(messages: Sequence[Message]) -> float:
    """Share of the turns that held a valid guess."""
    return guesses_used(messages) / max(1, len(guesses_in(messages)))


def guesses_used(messages: Sequence[Message]) -> float:
    """How many valid guesses were made."""
    return float(sum(guess is not None for guess in guesses_in(messages)))


def bits_per_guess(messages: Sequence[Message], answer: str, info: Mapping[str, int]) -> float:
    """Information gained by a guess on average, in bits: each halves the number of possible words once."""
    before = {*secret_words(info["secrets"]), answer}
    after = still_possible(before, guesses_in(messages), answer)
    return math.log2(len(before) / len(after)) / max(1.0, guesses_used(messages))


# Words


@cache
def valid_words() -> dict[str, float]:
    """Words of five letters with their frequency, the highest first: at least one in ten million."""
    english = wordfreq.get_frequency_dict("en", "best")
    return {word: often for word, often in english.items() if often >= 1e-7 and re.fullmatch("[a-z]{5}", word)}


@cache
def secret_words(count: int) -> tuple[str, ...]:
    """The `count` most frequent words that are proper English, the most frequent first.

    Names and foreign words are valid guesses but no secrets. They are known by their spread: an English word is five
    times as frequent in English as in German, French or Spanish, at least. Nor is a contraction without its apostrophe
    a secret, or a word that nobody should be asked for.
    """
    english, *others = (wordfreq.get_frequency_dict(language, "best") for language in ("en", "de", "fr", "es"))

    def proper(word: str, often: float) -> bool:
        contraction = max(english.get(f"{word[:i]}'{word[i:]}", 0.0) for i in (3, 4))
        return often > contraction and all(often >= 5 * other.get(word, 0.0) for other in others)

    words = [word for word, often in valid_words().items() if word not in UNASKED and proper(word, often)]
    if not 1 <= count <= len(words):
        raise ConfigError(f"secrets={count}; expected 1 to {len(words)}, the number of proper English words there are")
    return tuple(words[:count])


UNASKED = decode("nffrf obare obbof ovgpu pbpxf phagf qvpxf shpxf tlcfl encrq encrf fuvgr fuvgf juber", "rot13").split()


def split_of(word: str) -> Literal["train", "eval"]:
    """A fifth of all words is for evaluation. Nothing but the word decides, so no argument ever moves one."""
    return "eval" if derive_seed("split", word) % 5 == 0 else "train"
