"""Which moves solve a puzzle, by looking at all of them: no engine, so what is right is exact."""

from collections.abc import Iterator

import chess

MATED = 1000


def mates(board: chess.Board) -> list[chess.Move]:
    """The moves that mate at once."""
    return [move for move in board.legal_moves if board.gives_check(move) and _mates(board, move)]


def mates_in_two(board: chess.Board) -> list[chess.Move]:
    """The moves after which every reply allows mate; none where there is a mate at once."""
    return [] if mates(board) else [move for move in board.legal_moves if _forces_mate(board, move)]


def winners(board: chess.Board, pawns: int = 2) -> Iterator[chess.Move]:
    """The moves that win material worth so many pawns for certain, or mate.

    For certain: after every reply and all captures that then pay for either side. A pawn counts 1, knight and bishop 3,
    rook 5, queen 9.
    """
    least = material(board) + pawns
    return (move for move in list(board.legal_moves) if _wins(board, move, least))


def material(board: chess.Board) -> int:
    """What the side to move has more than the other, in pawns."""
    ours, theirs = board.occupied_co[board.turn], board.occupied_co[not board.turn]
    kinds = ((board.pawns, 1), (board.knights | board.bishops, 3), (board.rooks, 5), (board.queens, 9))
    return sum(value * (chess.popcount(ours & kind) - chess.popcount(theirs & kind)) for kind, value in kinds)


def _mates(board: chess.Board, move: chess.Move) -> bool:
    board.push(move)
    found = board.is_checkmate()
    board.pop()
    return found


def _forces_mate(board: chess.Board, move: chess.Move) -> bool:
    board.push(move)
    replies = list(board.legal_moves)
    forced = bool(replies) and all(_allows_mate(board, reply) for reply in replies)
    board.pop()
    return forced


def _allows_mate(board: chess.Board, reply: chess.Move) -> bool:
    board.push(reply)
    found = any(board.gives_check(move) and _mates(board, move) for move in board.legal_moves)
    board.pop()
    return found


def _wins(board: chess.Board, move: chess.Move, least: int) -> bool:
    board.push(move)
    won = board.is_checkmate() or not board.is_stalemate()
    for reply in list(board.legal_moves):
        board.push(reply)
        won = not board.is_checkmate() and _settled(board, least - 1, least) >= least
        board.pop()
        if not won:
            break
    board.pop()
    return won


def _settled(board: chess.Board, low: int, high: int) -> int:
    """The side to move's `material` once no capture pays, as far as it lies between the bounds (alpha-beta).

    Nobody has to capture, except to get out of check; then every way out is looked at.
    """
    if board.is_check():
        moves, best = list(board.legal_moves), -MATED
    else:
        best = material(board)
        moves = list(board.generate_legal_captures()) if best < high else []
    for move in sorted(moves, key=lambda move: -(board.piece_type_at(move.to_square) or 0)):  # the dearest first
        if best >= high:
            break
        board.push(move)
        best = max(best, -_settled(board, -high, -max(low, best)))
        board.pop()
    return best
