"""Rollouts in a list: what is known of each, which of them are looked for."""

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from envs.errors import ConfigError, unknown_name
from envs.types import Trajectory

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"\s*([\w./-]+?)\s*(<=|>=|!=|=|<|>)\s*(.+?)\s*")


@dataclass(frozen=True)
class Row:
    """One rollout.

    Attributes:
        number: its place among all rollouts of the run.
        where: which file it is from.
        trajectory: the rollout.
    """

    number: int
    where: str
    trajectory: Trajectory

    @property
    def tokens(self) -> int:
        """Tokens that were sampled: counted, or as the server counted them."""
        turns = (turn.completion for turn in self.trajectory.turns)
        return sum(
            len(c.completion_ids) if c.completion_ids is not None else c.usage.get("completion_tokens", 0)
            for c in turns
        )

    def value(self, name: str) -> float | None:
        """A number by name: reward, a reward or metric, turns, tokens, seconds, sample, attempts."""
        t = self.trajectory
        own = {"turns": len(t.turns), "tokens": self.tokens, "seconds": t.seconds, "sample": t.sample}
        own["attempts"] = t.attempts
        scores: dict[str, float | None] = {**own, **t.rewards, **t.metrics, "reward": t.reward}
        return scores.get(name)

    def text(self) -> str:
        """All that can be searched, in lower case."""
        t = self.trajectory
        said = [m["content"] or "" for turn in t.turns for m in (*turn.messages, turn.completion.message)]
        calls = [
            call["function"]["name"] for turn in t.turns for call in turn.completion.message.get("tool_calls") or ()
        ]
        failure = "" if t.failure is None else f"{t.failure.error} {t.failure.message}"
        return "\n".join([t.task.id, str(t.task.answer), t.stop, failure, *said, *calls]).lower()


def select(rows: Iterable[Row], search: str = "", conditions: Sequence[str] = ()) -> list[Row]:
    """The rows that hold a text (upper and lower case are the same) and meet all conditions.

    Args:
        rows: of one run.
        search: empty finds all.
        conditions: `reward<0.5`, `exact_match=1`, `stop=length`, `task=ID`, `where=evals/eval`, `failed`, `scored`.

    Raises:
        ConfigError: for a condition that cannot be read, or names nothing that any of the rows has.
    """
    found = list(rows)
    for condition in conditions:
        found = _meeting(found, condition)
    return [row for row in found if search.lower() in row.text()] if search else found


def _meeting(rows: list[Row], condition: str) -> list[Row]:
    word = condition.strip()
    if word in ("failed", "scored"):
        return [row for row in rows if (row.trajectory.reward is None) == (word == "failed")]
    match = _CONDITION.fullmatch(condition)
    if match is None:
        raise ConfigError(
            f"cannot read the condition '{condition}'; expected one like reward<0.5, stop=length or failed"
        )
    name, sign, wanted = match.groups()
    texts: dict[str, Callable[[Row], str]] = {
        "stop": lambda row: row.trajectory.stop,
        "task": lambda row: row.trajectory.task.id,
        "where": lambda row: row.where,
    }
    if name in texts:
        if sign not in ("=", "!="):
            raise ConfigError(f"the condition '{condition}' compares a text; expected {name}=… or {name}!=…")
        return [row for row in rows if (texts[name](row) == wanted) == (sign == "=")]
    try:
        bound = float(wanted)
    except ValueError:
        raise ConfigError(f"the condition '{condition}' compares with {wanted!r}; expected a number") from None
    if rows and all(row.value(name) is None for row in rows):
        known = {n for row in rows for n in (*row.trajectory.rewards, *row.trajectory.metrics)}
        raise unknown_name("value", name, {"reward", "turns", "tokens", "seconds", "sample", *texts, *known})
    values = ((row, row.value(name)) for row in rows)
    return [row for row, value in values if value is not None and OPERATORS[sign](value, bound)]
