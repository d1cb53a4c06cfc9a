"""The puzzles are what they say, and what is played in them counts as the rules of chess have it."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import chess
import pytest

from envs import ScriptedClient, Task, TasksetError, Trajectory, load_environment, run_task
from envs.resolve import find_environment

ENVIRONMENT = load_environment("chess_puzzles")
PUZZLES: Any = importlib.import_module(find_environment("chess_puzzles").function().__module__)
SEARCH: ModuleType = importlib.import_module(f"{PUZZLES.__name__}.search")

BACK_RANK = "6k1/5ppp/8/8/8/8/8/R3K3 w - - 0 1"
LADDER = "7k/8/8/8/8/8/R7/1R5K w - - 0 1"
RIGHT = ["a2a7", "b1b7", "b1g1"]


def board(row: dict[str, str]) -> chess.Board:
    return chess.Board(f"{row['position']} {row['turn']} - - 0 1")


def uci(moves: Any) -> list[str]:
    return sorted(move.uci() for move in moves)


async def say(fen: str, kind: str, right: list[str], *words: str) -> Trajectory:
    task = Task.ask("a", "?", right, fen=fen, kind=kind)
    rest = iter(words)
    record = await run_task(ENVIRONMENT, task, ScriptedClient(lambda _: next(rest)))
    assert record.failure is None, record.failure
    return record


@pytest.mark.parametrize("said", ["a1a8", "Ra8#", "Ra8", " a1a8.\n", "It is <move>Ra8</move>!"])
async def test_a_move_is_read_as_uci_and_as_people_write_it(said: str) -> None:
    record = await say(BACK_RANK, "mate_in_one", ["a1a8"], said)
    assert record.reward == pytest.approx(1.1) and record.metrics["right_moves"] == 1.0


@pytest.mark.parametrize(
    ("said", "reward"),
    [("a1a7", 0.1), ("e1g1", 0.0), ("a1h8", 0.0), ("0000", 0.0), ("--", 0.0), ("", 0.0), ("a1a8 a1a7", 0.0)],
)
async def test_what_is_no_solution_earns_little_and_what_is_no_move_nothing(said: str, reward: float) -> None:
    record = await say(BACK_RANK, "mate_in_one", ["a1a8"], said)
    assert record.reward == pytest.approx(reward) and len(record.turns) == 1


async def test_who_mates_in_two_is_answered() -> None:
    record = await say(LADDER, "mate_in_two", RIGHT, "Ra7", "Rb8#")
    assert record.reward == pytest.approx(1.1)
    assert record.messages[2]["content"] == "h8g8\nMate in one."
    record = await say(LADDER, "mate_in_two", RIGHT, "Ra7", "Rb2")
    assert record.reward == pytest.approx(0.1) and record.metrics["right_moves"] == 0.5
    record = await say(LADDER, "mate_in_two", RIGHT, "Ra7", "Rb9")
    assert record.reward == 0.0 and record.metrics["right_moves"] == 0.5
    record = await say(LADDER, "mate_in_two", RIGHT, "Ra6")
    assert record.reward == pytest.approx(0.1) and record.metrics["right_moves"] == 0.0


async def test_any_mate_will_do_in_the_end() -> None:
    record = await say(LADDER, "mate_in_two", RIGHT, "b1b7", "a2a8")
    assert record.reward == pytest.approx(1.1)


# What solves a puzzle


def test_mates_in_one_and_two_are_found_by_looking_at_all_moves() -> None:
    assert uci(SEARCH.mates(chess.Board(BACK_RANK))) == ["a1a8"]
    assert uci(SEARCH.mates_in_two(chess.Board(LADDER))) == ["a2a7", "b1b7", "b1g1"]
    assert SEARCH.mates_in_two(chess.Board(BACK_RANK)) == [], "mate in one is no mate in two"
    stalemate = "k7/8/2K5/8/8/8/8/1Q6 w - - 0 1"
    assert "c6c7" not in uci(SEARCH.mates_in_two(chess.Board(stalemate)))


@pytest.mark.parametrize(
    ("fen", "won"),
    [
        ("4k3/8/8/3r4/8/2N5/8/4K3 w - - 0 1", ["c3d5"]),  # hangs
        ("4k3/8/4p3/3r4/8/2N5/8/4K3 w - - 0 1", ["c3d5"]),  # guarded, and worth more than the knight
        ("4k3/8/4p3/3n4/8/2N5/8/4K3 w - - 0 1", []),  # guarded, and worth the same
        ("r3k3/8/8/3N4/8/8/8/4K3 w - - 0 1", ["d5c7"]),  # a fork: check, then the rook
        ("r2bk3/8/8/3N4/8/8/8/4K3 w - - 0 1", []),  # the same, and the knight is taken
        ("4k3/P7/8/8/8/8/8/4K3 w - - 0 1", ["a7a8q", "a7a8r", "a7a8b", "a7a8n"]),  # a new piece
    ],
)
def test_material_is_won_for_certain(fen: str, won: list[str]) -> None:
    assert uci(SEARCH.winners(chess.Board(fen))) == sorted(won)


def test_every_mate_in_one_is_proven_anew() -> None:
    rows = [row for row in PUZZLES.rows() if row["kind"] == "mate_in_one"]
    assert len(rows) > 100
    for row in rows:
        assert uci(SEARCH.mates(board(row))) == row["moves"].split(), row


@pytest.mark.parametrize(("kind", "prove"), [("mate_in_two", "mates_in_two"), ("win_material", "winners")])
def test_some_of_the_others_are_proven_anew(kind: str, prove: str) -> None:
    rows = [row for row in PUZZLES.rows() if row["kind"] == kind]
    assert len(rows) > 100
    for row in sorted(rows, key=lambda row: board(row).legal_moves.count())[:40:8]:
        assert uci(getattr(SEARCH, prove)(board(row))) == row["moves"].split(), row


def test_a_mirror_image_is_solved_by_mirrored_moves() -> None:
    for row in [row for row in PUZZLES.rows() if row["kind"] == "mate_in_one"][:20]:
        views = PUZZLES.views(row)
        assert views[0] == row and len({(view["position"], view["turn"]) for view in views}) == len(views) == 4
        assert all(uci(SEARCH.mates(board(view))) == view["moves"].split() for view in views)


# Tasks


def test_a_game_is_in_one_split_and_no_position_is_in_both_even_mirrored() -> None:
    games: dict[str, set[str]] = {"train": set(), "eval": set()}
    images: dict[str, set[str]] = {"train": set(), "eval": set()}
    for row in PUZZLES.rows():
        games[PUZZLES.split_of(row)].add(row["game"])
        images[PUZZLES.split_of(row)] |= {view["position"] + view["turn"] for view in PUZZLES.views(row)}
    assert len(games["eval"]) > 20 and games["train"].isdisjoint(games["eval"])
    assert images["train"].isdisjoint(images["eval"])


def test_positions_are_shown_as_pieces_or_as_fen() -> None:
    assert PUZZLES.pieces(chess.Board(BACK_RANK)) == "White Ke1 Ra1\nBlack Kg8 f7 g7 h7"
    one, other = (load_environment("chess_puzzles", show=show).tasks.split("eval")[0] for show in ("pieces", "fen"))
    assert one.info == other.info and str(other.prompt[0]["content"]).startswith(other.info["fen"])
    assert str(one.prompt[0]["content"]).startswith(PUZZLES.pieces(chess.Board(one.info["fen"])) + "\n")


def test_kinds_and_pieces_can_be_limited() -> None:
    tasks = load_environment("chess_puzzles", kinds=["mate_in_one"], max_pieces=12, train_tasks=30).tasks.split("train")
    assert len(tasks) == 30 and {task.info["kind"] for task in tasks} == {"mate_in_one"}
    assert max(len(chess.Board(task.info["fen"]).piece_map()) for task in tasks) <= 12
    with pytest.raises(TasksetError, match="no puzzle of mate_in_two has 2 pieces or fewer"):
        len(load_environment("chess_puzzles", kinds=["mate_in_two"], max_pieces=2).tasks)


def test_making_puzzles_without_stockfish_says_how_to_get_it() -> None:
    asked = [sys.executable, "-m", "chess_puzzles.make", "--stockfish", "no-such-engine"]
    ran = subprocess.run(asked, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stderr.endswith("making puzzles needs it: apt-get install stockfish\n")
