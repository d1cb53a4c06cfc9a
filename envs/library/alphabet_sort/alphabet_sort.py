"""Keep a list of names sorted while more of them arrive: every turn stands on the ones before.

Names are sorted by first or by last name, as the task says. From the second turn on the whole list is asked for, with
the names that are new in this turn marked. The conversation is the only state: a recorded one can be scored again.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from envs import ConfigError, Environment, Message, Rollout, Rubric, Task, Taskset, derive_seed, multi_turn, xml_tag

Key = Literal["first", "last"]
Draw = Callable[[random.Random, str, int], tuple[list[str], list[str]]]
"""Generator, split and number to as many first and last names of the split, none of them twice."""
MARK = " // new"


def load_environment(
    max_turns: int = 3,
    min_names: int = 2,
    max_names: int = 5,
    power: float = 4.0,
    names: str = "listed",
    clean_demonstrations: float = 1.0,
    train_tasks: int = 2000,
    eval_tasks: int = 256,
    seed: int = 0,
) -> Environment:
    """Lists of names to sort over one turn or more.

    Args:
        max_turns: the most turns of a task; each has 1 to this many.
        min_names: fewest names that arrive in a turn.
        max_names: most names that arrive in a turn.
        power: the similarity of a turn's list to the right one is raised to this: half right earns little.
        names: listed (237 real ones), or invented, too many for a small model to learn them by heart.
        clean_demonstrations: share of demonstrated lists (0 to 1) that are sorted; the others are in any order, so
            that they teach to write lists, and leave sorting to reinforcement.
        train_tasks: how many tasks to train on.
        eval_tasks: how many tasks to evaluate on.
        seed: decides the tasks and which demonstrated lists are sorted.
    """
    if not (max_turns >= 1 and 2 <= min_names <= max_names and max_turns * max_names <= MOST_NAMES):
        raise ConfigError(
            f"max_turns={max_turns}, names from {min_names} to {max_names}; expected at least 1 turn, "
            f"2 <= min_names <= max_names, and at most {MOST_NAMES} names in a task"
        )
    if names not in _DRAW:
        raise ConfigError(f"names='{names}'; expected listed or invented")
    if not power > 0 or train_tasks < 1 or eval_tasks < 1:
        raise ConfigError(
            f"power={power}, train_tasks={train_tasks}, eval_tasks={eval_tasks}; expected positive numbers"
        )
    if not 0 <= clean_demonstrations <= 1:
        raise ConfigError(f"clean_demonstrations is {clean_demonstrations}; expected a share from 0 to 1")
    count, draw = {"train": train_tasks, "eval": eval_tasks}, _DRAW[names]

    def tasks(split: str) -> list[Task]:
        return [_task(seed, split, i, max_turns, min_names, max_names, power, draw) for i in range(count[split])]

    def demonstrate(task: Task, sample: int) -> list[Message]:
        """Every list as it should be or, by their share, in any order."""
        rng = random.Random(derive_seed(seed, "demonstration", task.id, sample))
        messages: list[Message] = []
        for turn, right in enumerate(task.answer):
            if turn:
                messages.append({"role": "user", "content": more(task.info["arriving"][turn])})
            lines = right if rng.random() < clean_demonstrations else rng.sample(right, len(right))
            messages.append({"role": "assistant", "content": "<sorted>\n" + "\n".join(lines) + "\n</sorted>"})
        return messages

    return Environment(
        tasks=Taskset.from_function(tasks),
        harness=multi_turn(respond, max_turns=max_turns),
        rubric=Rubric({similarity: 1.0, turns_right: 0.0, all_right: 0.0}),
        demonstrate=demonstrate,
    )


def _task(seed: int, split: str, number: int, max_turns: int, low: int, high: int, power: float, draw: Draw) -> Task:
    rng = random.Random(derive_seed(seed, split, number))
    key: Key = rng.choice(("first", "last"))
    sizes = [rng.randint(low, high) for _ in range(rng.randint(1, max_turns))]
    names = [f"{first} {last}" for first, last in zip(*draw(rng, split, sum(sizes)), strict=True)]
    arriving = [names[sum(sizes[:turn]) : sum(sizes[: turn + 1])] for turn in range(len(sizes))]
    return Task.ask(
        f"{split}-{number}",
        opening(arriving[0], key),
        [right_list(arriving[: turn + 1], key) for turn in range(len(arriving))],
        arriving=arriving,
        key=key,
        power=power,
    )


def opening(names: Sequence[str], key: Key) -> str:
    listed = "\n".join(names)
    return (
        f"Sort these names alphabetically by {key} name. Write one a line between <sorted> and </sorted>.\n\n{listed}"
    )


def more(names: Sequence[str]) -> str:
    listed = "\n".join(names)
    return (
        "Sort these names into the list. Write the whole list between <sorted> and </sorted>, "
        f"with '{MARK.strip()}' behind each name that was not in it before.\n\n{listed}"
    )


def right_list(arrived: Sequence[Sequence[str]], key: Key) -> list[str]:
    """All names so far in order; from the second turn on those of the last turn are marked."""
    new = set(arrived[-1]) if len(arrived) > 1 else set()
    names = sorted((name for turn in arrived for name in turn), key=lambda name: name.split()[key == "last"])
    return [name + MARK if name in new else name for name in names]


def respond(rollout: Rollout) -> str | None:
    """The names that arrive next; None when all have."""
    arriving = rollout.task.info["arriving"]
    said = len(rollout.trajectory.turns)
    return more(arriving[said]) if said < len(arriving) else None


# Rewards and metrics


def similarity(messages: Sequence[Message], answer: Sequence[Sequence[str]], info: Mapping[str, float]) -> float:
    """Mean over the turns: lines in the right order, over the lines of the longer list, to the `power`."""
    shares = [
        in_order(found, right) / max(len(found), len(right))
        for found, right in zip(lists_in(messages, answer), answer, strict=True)
    ]
    return sum(share ** info["power"] for share in shares) / len(answer)


def turns_right(messages: Sequence[Message], answer: Sequence[Sequence[str]]) -> float:
    """Share of the turns whose list is right to the letter."""
    return sum(found == right for found, right in zip(lists_in(messages, answer), answer, strict=True)) / len(answer)


def all_right(messages: Sequence[Message], answer: Sequence[Sequence[str]]) -> float:
    """1 if every list is right."""
    return float(turns_right(messages, answer) == 1)


def lists_in(messages: Sequence[Message], answer: Sequence[Sequence[str]]) -> list[list[str]]:
    """The lines of the last `<sorted>` tag of each turn; none where there is no tag, or no turn."""
    said = [xml_tag("sorted")(m["content"] or "") or "" for m in messages if m["role"] == "assistant"]
    said += [""] * (len(answer) - len(said))
    return [[line.strip() for line in text.splitlines() if line.strip()] for text in said]


def in_order(found: Sequence[str], right: Sequence[str]) -> int:
    """How many lines both lists have in the same order: their longest common subsequence."""
    row = [0] * (len(right) + 1)
    for line in found[: 4 * len(right)]:  # a list far too long has lost anyway
        before = 0
        for i, wanted in enumerate(right, 1):
            before, row[i] = row[i], before + 1 if line == wanted else max(row[i], row[i - 1])
    return row[-1]


# Names


def split_of(name: str) -> Literal["train", "eval"]:
    """A third of all names is for evaluation: no name is in both splits."""
    return "eval" if derive_seed("split", name) % 3 == 0 else "train"


def listed(rng: random.Random, split: str, number: int) -> tuple[list[str], list[str]]:
    """Real names, out of those in this module."""
    firsts, lasts = ([name for name in names if split_of(name) == split] for names in (FIRST, LAST))
    return rng.sample(firsts, number), rng.sample(lasts, number)


def invented(rng: random.Random, split: str, number: int) -> tuple[list[str], list[str]]:
    """Names of one to three syllables like `Wesch` and `Tidaro`; one's first name may be another's last name."""

    def some() -> list[str]:
        found: list[str] = []
        while len(found) < number:
            syllables = rng.randint(1, 3)
            name = "".join(rng.choice(part) for _ in range(syllables) for part in _SYLLABLE).capitalize()
            if 2 < len(name) < 9 and name not in _REAL and name not in found and split_of(name) == split:
                found.append(name)
        return found

    return some(), some()


_DRAW: dict[str, Draw] = {"listed": listed, "invented": invented}
_SYLLABLE = (
    ["b", "c", "ch", *"dfghjklmnp", "qu", "r", "s", "sh", *"tvwxyz", "br", "kr", "st", *[""] * 6],
    [*"aeiou"],
    [*"bcdfgklmnprstvxz", "nd", "rt", "ck", "ll", "sch", *[""] * 21],
)

_FIRST = """
Aaron Abigail Adam Agnes Ahmed Aisha Alan Alice Amara Amir Andrea Anita Arthur Astrid Barbara Beatriz Bela Bruno
Camille Carlos Carmen Chidi Clara Daniel Daria David Deepa Diego Dmitri Edith Elena Emeka Emma Erik Esther Eva
Farah Felix Fiona Francis Freya George Gloria Grace Gustav Hana Hassan Helen Hugo Ibrahim Ida Igor Ines Ivan
Jack Jasmine Joan Jonas Julia Kamal Karen Karl Kenji Kofi Laila Laura Leo Liam Lina Lucia Magnus Maria Marta Mei
Miguel Mina Nadia Naoki Nina Noah Nora Olga Oliver Omar Oscar Paula Pedro Petra Priya Quentin Rachel Rafael Ravi
Rosa Ruth Salma Samuel Sara Sofia Stefan Tariq Teresa Thomas Tove Uma Ursula Victor Vera Walter Wanda Xavier
Yara Yusuf Zara Zoe
"""
FIRST = _FIRST.split()
_LAST = """
Abbott Adeyemi Ahmadi Andersen Araujo Baker Banerjee Bauer Becker Bennett Bianchi Bosch Brandt Carlsson Castillo
Chandra Chen Clarke Costa Cruz Dahl Dalton Diaz Dubois Dvorak Eriksen Espinoza Evans Falk Fernandez Fischer
Flores Fontaine Fraser Fujita Garcia Gibson Gomez Gray Gupta Haas Hansen Harris Hayashi Herrera Hoffman Hughes
Ibarra Ito Ivanov Jackson Jansen Jensen Johnson Kaplan Keller Khan Kim Klein Kowalski Kumar Lambert Larsen
Laurent Lee Lindgren Lopez Mancini Martin Mbeki Mendoza Meyer Moreau Mueller Murphy Nakamura Navarro Nguyen
Nilsson Novak Okafor Olsen Ortiz Osborne Owens Park Patel Pereira Petrov Popov Quinn Ramirez Reyes Ricci Rossi
Russo Saito Santos Schmidt Sharma Silva Singh Sokolov Suzuki Tanaka Taylor Thompson Torres Ueda Unger Valdez
Varga Vogel Wagner Walsh Weber Wong Yamada Young Zapata Ziegler Zimmer
"""
LAST = _LAST.split()
_REAL = {*FIRST, *LAST}
MOST_NAMES = min(sum(split_of(name) == "eval" for name in names) for names in (FIRST, LAST))
