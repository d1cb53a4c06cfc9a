"""Training rollouts on disk: line by line while a step is being collected, one Parquet file once it is trained on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from envs.record import Journal
from envs.types import Trajectory

_TURN = pa.struct(
    [
        ("messages", pa.string()),  # JSON
        ("completion", pa.string()),  # JSON
        ("finish_reason", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float64())),
        ("versions", pa.list_(pa.int32())),
        ("usage", pa.string()),  # JSON
        ("fresh", pa.bool_()),
        ("seconds", pa.float64()),
    ]
)
_ROUTED_TURN = pa.struct([*_TURN, pa.field("routing", pa.string())])  # JSON
_JSON = ("messages", "completion", "usage", "routing")


class StepJournal:
    """The rollouts of one step. A killed run finds them again, and does not sample them twice.

    Args:
        directory: `rollouts/` of the run.
        step: number of the update they are for, from 1.
    """

    def __init__(self, directory: Path, step: int) -> None:
        self._table = directory / f"step_{step:06d}.parquet"
        self._lines = directory / f"step_{step:06d}.jsonl"
        self._step = step
        self._journal: Journal | None = None

    def done(self) -> list[Trajectory]:
        """The rollouts that are on disk already."""
        if self._table.is_file():
            return read_rollouts(self._table)
        if not self._lines.is_file():
            return []
        with Journal(self._lines) as journal:
            return [trajectory for _, trajectory in journal.read()]

    def append(self, trajectory: Trajectory) -> None:
        """Writes a finished rollout. One that failed is left to be tried again after a resume."""
        if trajectory.failure is not None:
            return
        if self._journal is None:
            self._journal = Journal(self._lines)
        self._journal.append(trajectory)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def seal(self, groups: Sequence[Sequence[Trajectory]], left_out: Sequence[Sequence[Trajectory]] = ()) -> None:
        """Keeps the step's rollouts as Parquet, which DuckDB and `datasets` read, in place of the lines.

        Args:
            groups: what was trained on.
            left_out: what was sampled, and not trained on.
        """
        self.close()
        trained, others = ([t for group in part for t in group] for part in (groups, left_out))
        write_rollouts(self._table, [*trained, *others], self._step, left_out=len(others))
        self._lines.unlink(missing_ok=True)


def write_rollouts(path: Path, trajectories: Sequence[Trajectory], step: int, left_out: int = 0) -> None:
    """Writes rollouts as Parquet: one row each, rewards and metrics as columns, `turns` with the exact tokens.

    The last `left_out` of them were not trained on, which the column `trained` says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    routed = any(turn.completion.routing for t in trajectories for turn in t.turns)
    names = {
        **{f"rewards/{name}": pa.float64() for t in trajectories for name in t.rewards},
        **{f"metrics/{name}": pa.float64() for t in trajectories for name in t.metrics},
    }
    schema = pa.schema(
        [
            ("step", pa.int32()),
            ("trained", pa.bool_()),
            ("task_id", pa.string()),
            ("sample", pa.int32()),
            ("reward", pa.float64()),
            ("completion", pa.string()),
            ("stop", pa.string()),
            ("attempts", pa.int32()),
            ("seconds", pa.float64()),
            ("task", pa.string()),  # JSON
            ("tail", pa.string()),  # JSON
            ("failure", pa.string()),  # JSON
            ("roles", pa.string()),  # JSON
            ("turns", pa.list_(_ROUTED_TURN if routed else _TURN)),
            ("turn_rewards", pa.list_(pa.float64())),
            *names.items(),
        ]
    )
    temporary = path.with_suffix(".partial")
    rows = [_row(t, step) for t in trajectories]
    for number, row in enumerate(rows):
        row["trained"] = number < len(rows) - left_out
    pq.write_table(pa.Table.from_pylist(rows, schema), temporary)
    temporary.replace(path)


def read_rollouts(path: Path) -> list[Trajectory]:
    """The rollouts of a Parquet file, exactly as they were written."""
    return [_trajectory(row) for row in pq.read_table(path).to_pylist()]


def _row(t: Trajectory, step: int) -> dict[str, Any]:
    turns = [{k: json.dumps(v) if k in _JSON else v for k, v in turn.to_dict().items()} for turn in t.turns]
    return {
        "step": step,
        "task_id": t.task.id,
        "sample": t.sample,
        "reward": t.reward,
        "completion": t.completion.encode("utf-8", "replace").decode(),  # a view; `turns` has it exactly
        "stop": t.stop,
        "attempts": t.attempts,
        "seconds": t.seconds,
        "task": json.dumps(t.task.to_dict()),
        "tail": json.dumps(list(t.tail)),
        "failure": json.dumps(None if t.failure is None else t.failure.to_dict()),
        "roles": json.dumps({name: role.to_dict() for name, role in t.roles.items()}),
        "turns": turns,
        "turn_rewards": t.turn_rewards,
        **{f"rewards/{name}": value for name, value in t.rewards.items()},
        **{f"metrics/{name}": value for name, value in t.metrics.items()},
    }


def _trajectory(row: dict[str, Any]) -> Trajectory:
    def named(prefix: str) -> dict[str, float]:
        return {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix) and v is not None}

    return Trajectory.from_dict(
        {
            "task": json.loads(row["task"]),
            "sample": row["sample"],
            "turns": [{k: json.loads(v) if k in _JSON and v else v for k, v in turn.items()} for turn in row["turns"]],
            "tail": json.loads(row["tail"]),
            "stop": row["stop"],
            "reward": row["reward"],
            "rewards": named("rewards/"),
            "metrics": named("metrics/"),
            "turn_rewards": row.get("turn_rewards"),
            "failure": json.loads(row["failure"]),
            "attempts": row["attempts"],
            "seconds": row["seconds"],
            "roles": json.loads(row.get("roles") or "{}"),
        }
    )
