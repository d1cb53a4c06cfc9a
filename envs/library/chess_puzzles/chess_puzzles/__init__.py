"""Chess puzzles: mate in one, mate in two, win material. The rules of chess decide, and no engine is needed.

Whoever has to mate in two is answered, and has to find the mate as well. The conversation is the only state, so that a
recorded one can be scored again.
"""

import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import chess

from envs import (
    Environment,
    Message,
    Rollout,
    Rubric,
    Task,
    Taskset,
    TasksetError,
    derive_seed,
    multi_turn,
)
from envs.parsers import exact, xml_tag

from .search import mates

Kind = Literal["mate_in_one", "mate_in_two", "win_material"]
Show = Literal["pieces", "fen"]

GOALS = {
    "mate_in_one": "mate in one",
    "mate_in_two": "mate in two",
    "win_material": "win material",
}
MOVES = {"mate_in_one": 1, "mate_in_two": 2, "win_material": 1}
LETTERS = {chess.KING: "K", chess.QUEEN: "Q", chess.ROOK: "R", chess.BISHOP: "B", chess.KNIGHT: "N", chess.PAWN: ""}


def load_environment(
    kinds: tuple[Kind, ...] = ("mate_in_one", "mate_in_two", "win_material"),
    show: Show = "pieces",
    max_pieces: int = 32,
    train_tasks: int | None = None,
    eval_tasks: int | None = 256,
    seed: int = 0,
) -> Environment:
    """Puzzles out of games that were played for this environment.

    Args:
        kinds: which of the kinds of puzzles.
        show: the position as a list of pieces and their squares, or as FEN.
        max_pieces: the most pieces on the board, kings and pawns included.
        train_tasks: at most this many tasks to train on; None takes all there are.
        eval_tasks: at most this many tasks to evaluate on; None takes all there are.
        seed: decides the order of the tasks.
    """
    most = {"train": train_tasks, "eval": eval_tasks}

    def tasks(split: str) -> list[Task]:
        chosen = [
            _task(view, show)
            for row in rows()
            if row["kind"] in kinds and split_of(row) == split and sum(map(str.isalpha, row["position"])) <= max_pieces
            for view in (views(row) if split == "train" else [row])
        ]
        if not chosen:
            raise TasksetError(
                f"no puzzle of {', '.join(kinds) or 'no kind'} has {max_pieces} pieces or fewer; allow more"
            )
        chosen.sort(key=lambda task: derive_seed(seed, task.id))
        return chosen[: most[split]]

    return Environment(
        tasks=Taskset.from_function(tasks),
        harness=multi_turn(respond, max_turns=2),
        rubric=Rubric({solved: 1.0, legal: 0.1, right_moves: 0.0}),
        demonstrate=demonstrate,
    )


# Puzzles


@cache
def rows() -> tuple[dict[str, str], ...]:
    """The puzzles: kind, the game it is from, position and turn as in FEN, and the first moves that solve it (UCI)."""
    with Path(__file__).with_name("puzzles.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def split_of(row: dict[str, str]) -> str:
    """A fifth of the games is for evaluation: positions of one game are much alike, and all in one split."""
    return "eval" if derive_seed("split", row["game"]) % 5 == 0 else "train"


def views(row: dict[str, str]) -> list[dict[str, str]]:
    """A puzzle as it is, with left and right exchanged, with the colours exchanged, and with both."""
    moves = [chess.Move.from_uci(move) for move in row["moves"].split()]
    found = {}
    for across, around in ((0, 0), (7, 0), (0, 56), (7, 56)):
        ranks = [rank[::-1] if across else rank for rank in row["position"].split("/")]
        position = "/".join(ranks[::-1]).swapcase() if around else "/".join(ranks)
        turn = "wb"[(row["turn"] == "b") != bool(around)]
        turned = [
            chess.Move(m.from_square ^ across ^ around, m.to_square ^ across ^ around, m.promotion) for m in moves
        ]
        right = " ".join(sorted(move.uci() for move in turned))
        found[position, turn] = {**row, "position": position, "turn": turn, "moves": right}
    return list(found.values())


def _task(row: dict[str, str], show: Show) -> Task:
    fen = f"{row['position']} {row['turn']} - - 0 1"
    shown = fen if show == "fen" else pieces(chess.Board(fen))
    side = "White" if row["turn"] == "w" else "Black"
    question = f"{shown}\n{side} to move and {GOALS[row['kind']]}. Answer with a move like e2e4."
    name = f"{row['kind']}-{row['position'].replace('/', '-')}-{row['turn']}"
    return Task.ask(name, question, row["moves"].split(), fen=fen, kind=row["kind"])


def pieces(board: chess.Board) -> str:
    """A line for each side: its pieces, king first, pawns last, as in "White Kg1 Rd1 f2"."""

    def line(color: chess.Color) -> str:
        squares = [(kind, square) for kind in reversed(chess.PIECE_TYPES) for square in board.pieces(kind, color)]
        return " ".join(LETTERS[kind] + chess.square_name(square) for kind, square in squares)

    return f"White {line(chess.WHITE)}\nBlack {line(chess.BLACK)}"


# Play


def move_in(text: str, board: chess.Board) -> chess.Move | None:
    """The legal move of a message: what its last `<move>` tag holds or, if it has none, all of it ("e7e8q", "e8=Q")."""
    text = (xml_tag("move")(text) or exact()(text) or "").strip(" .\n")
    for read in (board.parse_uci, board.parse_san):
        try:
            move = read(text)
        except ValueError:
            continue
        return move if move in board.legal_moves else None  # both read "0000" as passing
    return None


class Play(NamedTuple):
    """What became of a puzzle.

    Attributes:
        board: after the model's moves and the replies to them.
        legal: no move was missing or against the rules.
        right: of each of the model's moves, whether it was a right one.
        over: solved or lost.
    """

    board: chess.Board
    legal: bool
    right: list[bool]
    over: bool


def play(messages: Sequence[Message], task: Task) -> Play:
    """The moves of the messages, up to the first that is wrong, played from the puzzle's position."""
    board, right = chess.Board(task.info["fen"]), list[bool]()
    for message in messages:
        if message["role"] != "assistant":
            continue
        move = move_in(message["content"] or "", board)
        if move is None:
            return Play(board, False, [*right, False], True)
        board.push(move)
        right.append(board.is_checkmate() if right else move.uci() in task.answer)
        if not right[-1] or len(right) == MOVES[task.info["kind"]]:
            return Play(board, True, right, True)
        board.push(reply(board, task))
    return Play(board, bool(right), right, False)


def reply(board: chess.Board, task: Task) -> chess.Move:
    """The other side's move: some legal one, the same every time; all of them allow mate."""
    moves = sorted(board.legal_moves, key=chess.Move.uci)
    return moves[derive_seed(task.id, board.board_fen()) % len(moves)]


def said(board: chess.Board) -> str:
    """What the model is told after a reply."""
    return f"{board.peek().uci()}\nMate in one."


def respond(rollout: Rollout) -> str | None:
    """What the other side plays; None once the puzzle is solved or lost."""
    found = play(rollout.messages, rollout.task)
    return None if found.over else said(found.board)


def demonstrate(task: Task, sample: int) -> list[Message]:
    """A solution; where several moves are right, demonstrators differ."""
    messages: list[Message] = [{"role": "assistant", "content": task.answer[sample % len(task.answer)]}]
    found = play(messages, task)
    if not found.over:
        messages.append({"role": "user", "content": said(found.board)})
        last = sorted(move.uci() for move in mates(found.board))
        messages.append({"role": "assistant", "content": last[sample % len(last)]})
    return messages


# Rewards and metrics


def solved(messages: Sequence[Message], task: Task) -> float:
    """1 if every move was right, and the last one played; else 0."""
    return float(right_moves(messages, task) == 1)


def legal(messages: Sequence[Message], task: Task) -> float:
    """1 if every move obeyed the rules; else 0."""
    return float(play(messages, task).legal)


def right_moves(messages: Sequence[Message], task: Task) -> float:
    """Share of the moves to be found that were right."""
    return sum(play(messages, task).right) / MOVES[task.info["kind"]]
