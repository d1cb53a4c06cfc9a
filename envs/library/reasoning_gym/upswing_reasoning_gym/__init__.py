"""Procedural reasoning tasks: any of the datasets of the package reasoning-gym by name, or a mix of several.

Questions, answers and scores are the package's. Some datasets give partial credit for answers that are nearly right,
or merely there.
"""

import asyncio
import importlib.util
import random
from collections.abc import Iterator, Mapping
from itertools import count, groupby
from typing import Any

from envs import ConfigError, Environment, Rubric, Task, Taskset, derive_seed, scores, single_turn, xml_tag
from envs.errors import unknown_name

_spec = importlib.util.find_spec("reasoning_gym")
if _spec is None or _spec.origin is None:  # importing it takes seconds, and another process does
    raise ModuleNotFoundError("No module named 'reasoning_gym'", name="reasoning_gym")

from .process import GYM  # noqa: E402
from .worker import SIZE  # noqa: E402

SYSTEM = "Answer between <answer> and </answer>."
ANSWERLESS = frozenset({"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"})
"""Datasets that can tell a right answer and show none."""
SLOW = frozenset(
    "advanced_geometry countdown futoshiki game_of_life game_of_life_halting intermediate_integration jugs "  # noqa: SIM905
    "knight_swap polynomial_equations polynomial_multiplication puzzle24 quantum_lock rearc rubiks_cube "
    "simple_integration sokoban sudoku word_ladder zebra_puzzles".split()
)
"""Datasets that take 20 ms and more for an entry: five seconds (knight_swap, sokoban), one (zebra_puzzles), or less."""
SECONDS = 5.0
"""CPU time that scoring one answer may take."""
_BATCH = 16
_PATIENCE = 8  # entries looked at for each that is wanted

_answer = xml_tag("answer")


def load_environment(
    dataset: str | Mapping[str, float] = "chain_sum",
    options: Mapping[str, Any] | None = None,
    train_tasks: int | None = None,
    eval_tasks: int | None = None,
    system: str = SYSTEM,
    seed: int = 0,
) -> Environment:
    """Entries of reasoning-gym as tasks.

    Args:
        dataset: its name, or several with their shares of a mix: `{chain_sum: 2, gcd: 1}`.
        options: settings of the dataset, like `{max_terms: 3}`; of a mix by name, like `{chain_sum: {max_terms: 3}}`.
        train_tasks: at most this many tasks to train on; fewer where the dataset has not as many different questions.
            By default 1000, or 64 if a dataset is a slow one: they are made at once.
        eval_tasks: at most this many tasks to evaluate on; by default 128, or 16.
        system: what is said before the question.
        seed: decides which entries are drawn.
    """
    shares = {dataset: 1.0} if isinstance(dataset, str) else dict(dataset)
    settings: dict[str, Any] = {name: {} for name in shares}
    settings.update({dataset: options or {}} if isinstance(dataset, str) else options or {})
    _check(shares, settings)
    few = SLOW & shares.keys()
    wanted = {
        "train": (64 if few else 1000) if train_tasks is None else train_tasks,
        "eval": (16 if few else 128) if eval_tasks is None else eval_tasks,
    }
    drawn = _Drawn(shares, settings, seed, system, max(1000, _PATIENCE * sum(wanted.values())))

    def tasks(split: str) -> list[Task]:
        return drawn.tasks(split, wanted[split])

    return Environment(
        tasks=Taskset.from_function(tasks),
        harness=single_turn(),
        rubric=Rubric({score: 1.0}),
        demonstrate=None if ANSWERLESS & shares.keys() else demonstrate,
    )


@scores(score=1.0, right=0.0, answered=0.0, unreadable=0.0)
async def score(completion: str, info: Mapping[str, Any]) -> dict[str, float]:
    """What the dataset gives for the answer; and whether that is full marks, there is one, and it broke the score."""
    answer = _answer(completion)
    if answer is None:
        return {"score": 0.0, "right": 0.0, "answered": 0.0, "unreadable": 0.0}
    reply = await asyncio.to_thread(GYM.ask, "score", answer=answer, seconds=SECONDS, **info)
    if "error" in reply:
        raise ValueError(f"the dataset cannot make its entry again: {reply['error']}")
    value = reply.get("score", 0.0)
    return {"score": value, "right": float(value >= 1), "answered": 1.0, "unreadable": float("unreadable" in reply)}


def demonstrate(task: Task, sample: int) -> str:
    """The answer, and nothing else."""
    return f"<answer>{task.answer}</answer>"


def split_of(question: str) -> str:
    """A quarter of all questions is for evaluation. Nothing but the question decides, so no argument ever moves one."""
    return "eval" if derive_seed("split", question) % 4 == 0 else "train"


class _Drawn:
    """The different questions among the entries, in the order they are drawn, as far as they were looked at."""

    def __init__(
        self, shares: Mapping[str, float], settings: Mapping[str, Any], seed: int, system: str, most: int
    ) -> None:
        self._entries = _entries(shares, settings, seed, most)
        self._system = system
        self._found: dict[str, list[Task]] = {"train": [], "eval": []}
        self._seen: set[str] = set()

    def tasks(self, split: str, wanted: int) -> list[Task]:
        while len(self._found[split]) < wanted:
            batch = next(self._entries, None)
            if batch is None:
                break
            for name, entry, info in batch:
                question = entry["question"]
                if question not in self._seen:
                    self._seen.add(question)
                    task = Task.ask(name, question, entry["answer"], system=self._system or None, **info)
                    self._found[split_of(question)].append(task)
        return self._found[split][:wanted]


def _entries(
    shares: Mapping[str, float], settings: Mapping[str, Any], seed: int, most: int
) -> Iterator[list[tuple[str, dict[str, Any], dict[str, Any]]]]:
    """Entries with their id and what they can be made again from, in batches."""

    def where(n: int) -> tuple[str, int]:
        draw = random.Random(derive_seed(seed, "mix", n))
        return draw.choices(list(shares), list(shares.values()))[0], n // SIZE

    for start in count(0, _BATCH):
        if start >= most:
            return
        batch = []
        for (name, part), numbers in groupby(sorted(range(start, start + _BATCH), key=where), where):
            indices = [n % SIZE for n in numbers]
            job = {"dataset": name, "options": settings[name], "seed": derive_seed(seed, name, part)}
            reply = GYM.ask("entries", indices=indices, **job)
            if "error" in reply:
                raise ConfigError(f"dataset '{name}' of reasoning-gym makes no entries: {reply['error']}")
            for index, entry in zip(indices, reply["entries"], strict=True):
                batch.append((f"{name}-{part * SIZE + index}", entry, {**job, "index": index}))
        yield batch


def _check(shares: Mapping[str, float], settings: Mapping[str, Any]) -> None:
    """
    Raises:
        ConfigError: a dataset or an option that there is not, or a value that the dataset refuses.
    """
    names = GYM.ask("names")["names"]
    for name in [*shares, *settings]:
        if name not in names:
            raise unknown_name("dataset of reasoning-gym", name, names)
    if not shares or not all(share > 0 for share in shares.values()):
        raise ConfigError(f"dataset={dict(shares)}; expected names with positive shares, like {{chain_sum: 2, gcd: 1}}")
    for name in settings:
        if name not in shares:
            raise ConfigError(f"options of '{name}', which is not in the mix: {', '.join(shares)}")
        known = GYM.ask("options", dataset=name)["options"]
        described = ", ".join(f"{option}={default}" for option, default in known.items()) or "none"
        if not isinstance(settings[name], Mapping):
            raise ConfigError(
                f"options of '{name}' are {settings[name]!r}; expected a mapping; its options: {described}"
            )
        for option in settings[name]:
            if option not in known:
                raise unknown_name(f"option of dataset '{name}'", option, known, f"by default: {described}")
        reply = GYM.ask("check", dataset=name, options=dict(settings[name]))
        if "error" in reply:
            raise ConfigError(
                f"dataset '{name}' refuses options={dict(settings[name])}: {reply['error']}; by default: {described}"
            )
