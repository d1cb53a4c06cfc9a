"""The rollouts that a run left on disk, whichever verb wrote them."""

from collections.abc import Iterator
from pathlib import Path

from envs.errors import UpswingError
from envs.record import read
from envs.types import Trajectory
from rl.rollout.journal import read_rollouts


def saved_rollouts(path: Path) -> Iterator[tuple[str, Trajectory]]:
    """Each rollout with where it was found: "evals/eval", "rollouts/step_000003", or the name of the file.

    Args:
        path: a run's directory, or one of its files: a journal (`.jsonl`) or the rollouts of a step (`.parquet`).

    Raises:
        UpswingError: if there are none, or a file is damaged.
    """
    if path.is_file():
        yield from ((path.stem, trajectory) for trajectory in _of_file(path))
        return
    if not path.is_dir():
        raise UpswingError(f"there is no run at {path}; expected a run's directory, or one of its journals")
    files = [f for folder in ("evals", "rollouts") for f in sorted((path / folder).glob("*")) if f.suffix in _SUFFIXES]
    if not files:
        raise UpswingError(f"{path} has no rollouts: nothing below evals/ and rollouts/; is it a run's directory?")
    for file in files:
        where = str(file.relative_to(path).with_suffix(""))
        yield from ((where, trajectory) for trajectory in _of_file(file))


_SUFFIXES = (".jsonl", ".parquet")


def _of_file(path: Path) -> Iterator[Trajectory]:
    if path.suffix == ".parquet":
        yield from read_rollouts(path)
    else:
        yield from (trajectory for _, trajectory in read(path))
