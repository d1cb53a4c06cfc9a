"""Nim: take from one of the heaps; whoever takes the last one wins. Played against itself or against chance.

`opponent=self` is self-play: the model has both sides, each with a conversation and a record of its own, and a group's
rollouts take turns in who is the learner. Every game can be won by the side that begins, and there is a known way to.
"""

import re
from functools import reduce
from operator import xor
from typing import Literal

from envs import (
    ConfigError,
    Environment,
    Message,
    Rubric,
    ScriptedClient,
    Task,
    Taskset,
    derive_seed,
    game_score,
    self_play,
)

RULES = "Heaps of stones. Two players take turns; each takes one stone or more from one heap. Whoever takes the last stone wins. Answer with the heap and how many to take, like this: 2 3"  # noqa: E501
SIDES = ("first", "second")


def load_environment(
    opponent: Literal["self", "random"] = "random", heaps: int = 3, most_stones: int = 7, train_tasks: int = 200,
    eval_tasks: int = 64, seed: int = 0,
) -> Environment:  # fmt: skip
    """Games of nim that the side which begins can win.

    Args:
        opponent: "self": the model has both sides. "random": the model begins against a player who takes at random.
        heaps: how many there are.
        most_stones: the most a heap begins with.
        train_tasks: at most this many tasks to train on.
        eval_tasks: at most this many tasks to evaluate on; a quarter of all positions is for that.
        seed: decides the order of the positions, and what the random player takes.
    """
    if heaps < 2 or most_stones < 2:
        raise ConfigError(f"heaps={heaps}, most_stones={most_stones}; expected at least 2 of each")
    most = {"train": train_tasks, "eval": eval_tasks}

    def tasks(split: str) -> list[Task]:
        chosen = [p for p in positions(heaps, most_stones) if (derive_seed("split", *p) % 4 == 0) == (split == "eval")]
        chosen.sort(key=lambda position: derive_seed(seed, *position))
        return [
            Task("-".join(map(str, p)), ({"role": "system", "content": RULES},), list(p), {"heaps": list(p)})
            for p in chosen[: most[split]]
        ]

    def at_random(messages: list[Message]) -> str:
        return random_move(heaps_in(messages[-1]["content"] or ""), seed)

    def demonstrate(task: Task, sample: int) -> list[Message]:
        return winning_game(list(task.info["heaps"]), seed)

    others = {"second": ScriptedClient(at_random)} if opponent == "random" else {}
    return Environment(
        tasks=Taskset.from_function(tasks),
        harness=self_play(
            lambda task: Nim(task.info["heaps"]), roles=SIDES, max_turns=heaps * most_stones, others=others
        ),
        rubric=Rubric({game_score: 1.0, legal: 0.0}),
        demonstrate=demonstrate,
    )


class Nim:
    """One game. Whoever makes a move that is none has lost."""

    def __init__(self, heaps: list[int]) -> None:
        self.heaps = list(heaps)
        self.turn: str | None = "first"
        self.winner: str | None = None
        self.forfeited: str | None = None

    def observe(self, role: str) -> str:
        return shown(self.heaps)

    def play(self, role: str, text: str) -> None:
        rival = SIDES[1 - SIDES.index(role)]
        move = move_in(text, self.heaps)
        if move is None:
            self.winner, self.forfeited, self.turn = rival, role, None
            return
        heap, count = move
        self.heaps[heap] -= count
        self.turn, self.winner = (rival, None) if any(self.heaps) else (None, role)

    def score(self, role: str) -> float:
        return float(self.winner == role)


def legal(state: object) -> float:
    """1 unless the learner lost by a move that is none."""
    return float(state.game.forfeited != state.role)  # type: ignore[attr-defined]


def shown(heaps: list[int]) -> str:
    return "\n".join(f"heap {i}: {count}" for i, count in enumerate(heaps, start=1)) + "\nYour move?"


def heaps_in(text: str) -> list[int]:
    return [int(count) for count in re.findall(r"heap \d+: (\d+)", text)]


def move_in(text: str, heaps: list[int]) -> tuple[int, int] | None:
    """The heap (from 0) and how many: the last two numbers of the text, if they are a move."""
    found = re.findall(r"\d{1,9}", text)
    if len(found) < 2:
        return None
    heap, count = int(found[-2]) - 1, int(found[-1])
    return (heap, count) if 0 <= heap < len(heaps) and 1 <= count <= heaps[heap] else None


def best_move(heaps: list[int]) -> tuple[int, int]:
    """Leaves heaps whose binary digits cancel out, as Bouton found in 1901; one stone where that cannot be."""
    total = reduce(xor, heaps)
    for i, count in enumerate(heaps):
        if total and count ^ total < count:
            return i, count - (count ^ total)
    return next(i for i, count in enumerate(heaps) if count), 1


def random_move(heaps: list[int], seed: int) -> str:
    filled = [i for i, count in enumerate(heaps) if count]
    heap = filled[derive_seed(seed, "heap", *heaps) % len(filled)]
    return f"{heap + 1} {derive_seed(seed, 'count', *heaps) % heaps[heap] + 1}"


def winning_game(heaps: list[int], seed: int) -> list[Message]:
    """What the learner sees and says in a game that it wins against the random player, from its first move on."""
    game, messages = Nim(heaps), list[Message]()
    while game.turn is not None:
        if game.turn == "second":
            game.play("second", random_move(game.heaps, seed))
            continue
        heap, count = best_move(game.heaps)
        messages.append({"role": "user", "content": game.observe("first")})
        messages.append({"role": "assistant", "content": f"{heap + 1} {count}"})
        game.play("first", f"{heap + 1} {count}")
    return messages


def positions(heaps: int, most_stones: int) -> list[tuple[int, ...]]:
    """Every start that whoever begins can win."""
    found: list[tuple[int, ...]] = [()]
    for _ in range(heaps):
        found = [(*position, count) for position in found for count in range(1, most_stones + 1)]
    return [position for position in found if reduce(xor, position)]
