"""Writes puzzles.csv: positions out of games that Stockfish and chance play against each other.

    apt-get install stockfish
    python -m chess_puzzles.make

The same version of Stockfish writes the same file. A game gives a few puzzles of each kind at most. What solves one is
proven by `search`; where material is won, Stockfish has to agree that no other move is as good.
"""

import argparse
import os
import random
import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import chess
import chess.engine

from .search import mates, mates_in_two, winners

OUT = Path(__file__).with_name("puzzles.csv")
LOOK = chess.engine.Limit(nodes=1000)
SURE = chess.engine.Limit(nodes=25_000)
PER_GAME = 3
MARGIN = 200
"""Centipawns that the winning move has to be better than any other."""


def stockfish(name: str) -> str:
    """Where Stockfish is; Debian's lies in /usr/games, which is not on every path."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/games"]))
    if found is None:
        sys.exit(f"error: no Stockfish found as '{name}'; making puzzles needs it: apt-get install stockfish")
    return found


def play(engine: chess.engine.SimpleEngine, number: int) -> Iterator[chess.Board]:
    """The positions of a game in which each side makes its own share of random moves."""
    rng = random.Random(number)
    chance = {color: rng.choice((0.1, 0.3, 0.6, 0.9)) for color in chess.COLORS}
    board = chess.Board()
    while not board.is_game_over() and board.ply() < 140:
        if board.ply() < 6 or rng.random() < chance[board.turn]:
            move = rng.choice(list(board.legal_moves))
        else:
            limit = chess.engine.Limit(nodes=rng.choice((50, 200, 800)))
            move = engine.play(board, limit, game=number).move or chess.Move.null()
        board.push(move)
        yield board


def plain(board: chess.Board) -> chess.Board:
    """The position without castling, en passant and history, so that pieces and turn say everything."""
    return chess.Board(f"{board.board_fen()} {'w' if board.turn else 'b'} - - 0 1")


def puzzles(engine: chess.engine.SimpleEngine, number: int) -> Iterator[tuple[str, chess.Board, list[chess.Move]]]:
    """Up to `PER_GAME` puzzles of each kind out of a game, at random among those that it has."""
    positions: dict[str, list[chess.Board]] = {kind: [] for kind in PROOFS}
    for played in play(engine, number):
        board = plain(played)
        kind = _promises(engine, played, board, number) if board.is_valid() and not played.is_game_over() else None
        if kind is not None:
            positions[kind].append(board)
    for kind, boards in positions.items():
        random.Random(f"{number} {kind}").shuffle(boards)
        proven = ((kind, board, PROOFS[kind](engine, board, number)) for board in boards[: 2 * PER_GAME])
        yield from islice((puzzle for puzzle in proven if puzzle[2]), PER_GAME)


def _promises(engine: chess.engine.SimpleEngine, played: chess.Board, board: chess.Board, number: int) -> str | None:
    """The kind of puzzle that the position seems to be, after a short look."""
    if mates(board):
        return "mate_in_one"
    lines = engine.analyse(board, LOOK, multipv=2, game=number)
    if len(lines) < 2:
        return None
    best, second = (line["score"].relative for line in lines)
    if best.mate() == 2:
        return "mate_in_two"
    return "win_material" if _apart(best, second) and not _recaptures(played, lines[0]["pv"][0]) else None


def _apart(best: chess.engine.Score, second: chess.engine.Score) -> bool:
    low, high = second.score(mate_score=10_000), best.score(mate_score=10_000)
    return low is not None and high is not None and high >= 100 and high - low >= MARGIN


def _recaptures(played: chess.Board, move: chess.Move) -> bool:
    """Does the move take what has just taken? That is no puzzle."""
    last = played.pop()
    took = played.is_capture(last)
    played.push(last)
    return took and move.to_square == last.to_square


def _mating(engine: chess.engine.SimpleEngine, board: chess.Board, number: int) -> list[chess.Move]:
    return _few(mates(board))


def _mating_in_two(engine: chess.engine.SimpleEngine, board: chess.Board, number: int) -> list[chess.Move]:
    return _few(mates_in_two(board))


def _winning(engine: chess.engine.SimpleEngine, board: chess.Board, number: int) -> list[chess.Move]:
    """The one move that wins material, if there is one and a longer look finds no better one."""
    lines = engine.analyse(board, SURE, multipv=2, game=number)
    if lines[0]["score"].relative.mate() is not None or not _apart(*(line["score"].relative for line in lines)):
        return []
    won = list(islice(winners(board), 2))
    return won if won == lines[0]["pv"][:1] else []


def _few(moves: list[chess.Move]) -> list[chess.Move]:
    """At most two, or it is no puzzle."""
    return moves if len(moves) <= 2 else []


PROOFS = {"mate_in_one": _mating, "mate_in_two": _mating_in_two, "win_material": _winning}
"""Which moves solve a position of each kind; none where it is no puzzle after all."""


def canonical(board: chess.Board) -> str:
    """The same for a position, its mirror images and those with colours changed."""
    board = board if board.turn else board.mirror()
    return min(board.board_fen(), board.transform(chess.flip_horizontal).board_fen())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=360, help="how many games are played")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--stockfish", default="stockfish", help="the program, or where it is")
    given = parser.parse_args()
    seen: set[str] = set()
    with chess.engine.SimpleEngine.popen_uci(stockfish(given.stockfish)) as engine, given.out.open("w") as out:
        engine.configure({"Threads": 1, "Hash": 16})
        print("kind,game,position,turn,moves", file=out, flush=True)
        for number in range(given.games):
            for kind, board, moves in puzzles(engine, number):
                if canonical(board) in seen:
                    continue
                seen.add(canonical(board))
                right = " ".join(sorted(move.uci() for move in moves))
                print(kind, number, board.board_fen(), "w" if board.turn else "b", right, sep=",", file=out, flush=True)


if __name__ == "__main__":
    main()
