"""Pairs of answers to one prompt, of which one is better: out of a file, or out of the groups of a run."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from envs.errors import ConfigError
from envs.render import Renderer
from envs.seeds import derive_seed
from envs.types import Message, Task, Trajectory
from rl.data.pack import Segment, segments
from rl.rollout.saved import saved_rollouts
from rl.trainer.sft import demonstrated


class Pair(NamedTuple):
    """A better and a worse answer, with their tokens."""

    id: str
    chosen: Trajectory
    rejected: Trajectory


def read_pairs(path: Path, renderer: Renderer) -> list[Pair]:
    """The pairs of a JSONL file with `prompt`, `chosen` and `rejected` (texts, or lists of messages); or of a run's
    directory, the best and the worst rollout of every group whose rewards differ, with the tokens that were drawn.

    Raises:
        ConfigError: when there are none, or a line is no pair.
    """
    pairs = list(_of_run(path) if path.is_dir() else _of_file(path, renderer))
    if not pairs:
        raise ConfigError(f"pairs={path} holds no pair: no group has two rollouts of different reward, or it is empty")
    return pairs


def _of_file(path: Path, renderer: Renderer) -> Iterator[Pair]:
    if not path.is_file():
        raise ConfigError(f"pairs={path} is not there; expected a JSONL file, or the directory of a run")
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            task = Task(str(number), tuple(_messages(row["prompt"], "user")))
            chosen, rejected = (demonstrated(task, _messages(row[k], "assistant"), renderer) for k in _ANSWERS)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}:{number} is no pair ({type(error).__name__}: {error}); expected a JSON object with prompt, "
                "chosen and rejected, each a text or a list of messages"
            ) from error
        yield Pair(task.id, chosen, rejected)


_ANSWERS = ("chosen", "rejected")


def _messages(value: Any, role: Any) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else [*value]


def _of_run(path: Path) -> Iterator[Pair]:
    groups: dict[tuple[str, str], list[Trajectory]] = {}
    for where, trajectory in saved_rollouts(path):
        if trajectory.reward is not None and where.startswith("rollouts/") and trajectory.sample >= 0:
            groups.setdefault((where, trajectory.task.id), []).append(trajectory)
    for (where, task), group in groups.items():
        best = max(group, key=lambda t: t.reward or 0.0)
        worst = min(group, key=lambda t: t.reward or 0.0)
        if (best.reward or 0.0) > (worst.reward or 0.0):
            yield Pair(f"{where}/{task}", best, worst)


def held_apart(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """The pairs to learn from, and those to measure with.

    All pairs of a prompt are on one side, so that what is measured with was not learned.

    Args:
        pairs: all of them.
        share: of the prompts that are measured with, rounded down.
        seed: decides which.

    Raises:
        ConfigError: for a share that is none, or that of all.
    """
    if not 0.0 <= share < 1.0:
        raise ConfigError(f"held_out is {share:g}; expected a share of the prompts, from 0 to below 1")
    prompts = [json.dumps(list(pair.chosen.task.prompt), sort_keys=True) for pair in pairs]
    order = sorted(set(prompts), key=lambda prompt: (derive_seed(seed, "held_out", prompt), prompt))
    apart = set(order[: int(share * len(order))])
    both = list(zip(pairs, prompts, strict=True))
    return [pair for pair, prompt in both if prompt not in apart], [pair for pair, prompt in both if prompt in apart]


def pair_segments(pairs: Iterable[Pair], *, last: bool = False) -> list[Segment]:
    """The segments of pairs, numbered from 1; those of the worse answers negatively.

    Args:
        pairs: in any order.
        last: only the last of each answer, which has all that was said before it in its prompt.
    """
    result: list[Segment] = []
    for number, pair in enumerate(pairs, start=1):
        for sign, trajectory in ((1, pair.chosen), (-1, pair.rejected)):
            for part in segments(trajectory, 0.0)[-1 if last else 0 :]:
                part.pair = sign * number
                result.append(part)
    return result
