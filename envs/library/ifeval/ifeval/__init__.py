"""Follow instructions about the form of an answer, each checked by code: the kinds of IFEval, with tasks of its own.

A task is a request and one instruction or more. What counts is whether the instructions are followed; what is said
about the subject is not judged, as in IFEval (Zhou et al. 2023, arXiv 2311.07911).
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from envs import ConfigError, Environment, Rubric, Task, Taskset, TasksetError, derive_seed, single_turn
from envs.errors import unknown_name

from .answers import compose
from .instructions import KINDS, Instruction, follows, occurrences, variants
from .words import REQUESTS, SUBJECTS, of_split

Instructions = Sequence[Instruction]


def load_environment(
    kinds: tuple[str, ...] = (),
    max_instructions: int = 3,
    train_tasks: int = 1000,
    eval_tasks: int = 256,
    seed: int = 0,
) -> Environment:
    """Requests with instructions about the form of the answer.

    Args:
        kinds: the kinds of instructions, of those in `KINDS`; none stands for all of them.
        max_instructions: the most instructions of a task; each has 1 to this many.
        train_tasks: how many tasks to train on.
        eval_tasks: how many tasks to evaluate on.
        seed: decides the tasks; no subject, keyword or phrase is ever in both splits.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind of instruction", kind, KINDS)
    chosen = tuple(kind for kind in KINDS if kind in kinds or not kinds)
    if all(KINDS[kind].idle for kind in chosen):
        busy = ", ".join(kind for kind in KINDS if not KINDS[kind].idle)
        raise ConfigError(f"kinds={list(kinds)}: doing nothing follows all of these; add one of {busy}")
    if min(max_instructions, train_tasks, eval_tasks) < 1:
        raise ConfigError(
            f"max_instructions={max_instructions}, train_tasks={train_tasks}, eval_tasks={eval_tasks}; "
            "expected positive numbers"
        )
    counts = {"train": train_tasks, "eval": eval_tasks}
    return Environment(
        tasks=Taskset.from_function(lambda split: tasks(split, counts[split], seed, chosen, max_instructions)),
        harness=single_turn(),
        rubric=Rubric({followed: 1.0, all_followed: 0.0, all_followed_loosely: 0.0, names_subject: 0.0}),
        demonstrate=demonstrate,
    )


def tasks(split: str, count: int, seed: int, kinds: Sequence[str], most: int) -> list[Task]:
    """Tasks of a split, no prompt twice; each can be done, for `demonstrate` has done it."""
    rng = random.Random(derive_seed(seed, split))
    found: dict[str, Task] = {}
    missed = 0
    while len(found) < count:
        task = _drawn(rng, split, f"{split}-{len(found)}", kinds, most)
        prompt = str(task.prompt[0]["content"])
        missed += 1
        if prompt not in found and _composed(task, 0) is not None:
            found[prompt] = task
            missed = 0
        elif missed > 1000:
            raise TasksetError(f"found {len(found)} different tasks for split '{split}', not {count}; ask for fewer")
    return list(found.values())


def _drawn(rng: random.Random, split: str, id: str, kinds: Sequence[str], most: int) -> Task:
    subject = rng.choice(of_split(SUBJECTS, split))
    request = rng.choice(REQUESTS).format(subject)
    drawn: list[dict[str, Any]] = []
    for name in _together(rng, kinds, rng.randint(1, most)):
        drawn.append({"kind": name, **KINDS[name].draw(rng, split)})
        if name == "repeat":
            drawn[-1]["request"] = request
    said = [rng.choice(KINDS[instruction["kind"]].say(instruction)) for instruction in drawn]
    return Task.ask(id, " ".join([request, *said]), subject=subject, request=request, instructions=drawn)


def _together(rng: random.Random, kinds: Sequence[str], count: int) -> list[str]:
    """Up to `count` kinds that can meet, the first of which takes doing something."""
    chosen = [rng.choice([name for name in kinds if not KINDS[name].idle])]
    for name in rng.sample(kinds, len(kinds)):
        kind, others = KINDS[name], [KINDS[other] for other in chosen]
        meets = name not in chosen and not any(kind.apart & other.apart for other in others)
        if len(chosen) < count and meets and not (kind.idle and any(other.idle for other in others)):
            chosen.append(name)
    return rng.sample(chosen, len(chosen))


# Gold answers


def demonstrate(task: Task, sample: int) -> str:
    """An answer that follows every instruction; another one for each demonstrator."""
    text = _composed(task, sample) or _composed(task, 0)
    assert text is not None, "tasks that cannot be done are not asked"
    return text


def _composed(task: Task, sample: int) -> str | None:
    info = task.info
    for attempt in range(5):
        rng = random.Random(derive_seed(str(task.prompt[0]["content"]), sample, attempt))
        text = compose(info["request"], info["subject"], info["instructions"], rng)
        if text is not None:
            return text
    return None


# Rewards and metrics


def followed(completion: str, info: Mapping[str, Any]) -> float:
    """Share of the instructions that are followed: IFEval's instruction-level strict accuracy."""
    return sum(follows(completion, instruction) for instruction in info["instructions"]) / len(info["instructions"])


def all_followed(completion: str, info: Mapping[str, Any]) -> float:
    """1 if every instruction is followed: IFEval's prompt-level strict accuracy."""
    return float(followed(completion, info) == 1)


def all_followed_loosely(completion: str, info: Mapping[str, Any]) -> float:
    """The same, of texts in which a line before or after the answer, or asterisks, do not count against it."""
    texts = variants(completion)
    return float(all(any(follows(text, instruction) for text in texts) for instruction in info["instructions"]))


def names_subject(completion: str, info: Mapping[str, Any]) -> float:
    """1 if the answer has the subject's name: whoever optimises form alone may forget it."""
    return float(occurrences(info["subject"], completion) > 0)
