"""Bring a warehouse into the order that is asked for, by calling tools: look at shelves, move goods.

The tools share the rollout's state, typed: the shelves of one warehouse. What was asked for is compared with what is
there at the end; how the model got there does not matter.
"""

import random
from dataclasses import dataclass

from envs import ConfigError, Environment, Hooks, Message, Rollout, Rubric, Task, Taskset, derive_seed, tool_use
from envs.clients.scripted import tool_call

GOODS = ("apples", "bolts", "candles", "drums", "envelopes", "flutes", "globes", "hammers")
QUESTION = "Move {count} {item} from shelf {source} to shelf {target}, and all {other} from wherever they are to shelf {home}. Shelves: {shelves}."  # noqa: E501

Shelves = dict[str, dict[str, int]]


@dataclass
class Warehouse:
    """What is on each shelf, and how often goods were moved."""

    shelves: Shelves
    moves: int = 0


def load_environment(
    shelves: int = 4, train_tasks: int = 512, eval_tasks: int = 128, max_turns: int = 10, seed: int = 0
) -> Environment:
    """Orders for a warehouse of a few shelves.

    Args:
        shelves: how many there are, 2 to 26.
        train_tasks: how many tasks there are to train on.
        eval_tasks: how many tasks there are to evaluate on.
        max_turns: the most answers of the model.
        seed: decides the warehouses.
    """
    if not 2 <= shelves <= 26:
        raise ConfigError(f"shelves={shelves}; expected 2 to 26")
    counts = {"train": train_tasks, "eval": eval_tasks}

    def tasks(split: str) -> list[Task]:
        return [order(f"{split}-{i}", shelves, derive_seed(seed, split, i)) for i in range(counts[split])]

    return Environment(
        tasks=Taskset.from_function(tasks),
        harness=tool_use([look, move], max_turns=max_turns, hooks=[Hooks(on_setup=open_warehouse)]),
        rubric=Rubric({in_order: 1.0, moves: 0.0}),
        demonstrate=demonstrate,
    )


def order(id: str, count: int, seed: int) -> Task:
    """One warehouse and what is to be done in it."""
    draw = random.Random(seed)
    names = [chr(ord("A") + i) for i in range(count)]
    shelves: Shelves = {name: {} for name in names}
    for item in GOODS:
        for name in draw.sample(names, 2):
            shelves[name][item] = draw.randint(2, 9)
    item, other = draw.sample(GOODS, 2)
    source = draw.choice([name for name in names if item in shelves[name]])
    target, home = draw.choice([name for name in names if name != source]), draw.choice(names)
    moved = draw.randint(1, shelves[source][item])
    goal = {name: dict(goods) for name, goods in shelves.items()}
    _shift(goal, item, moved, source, target)
    for name in names:
        if name != home:
            _shift(goal, other, goal[name].get(other, 0), name, home)
    fields = {"count": moved, "item": item, "source": source, "target": target, "other": other, "home": home}
    question = QUESTION.format(**fields, shelves=", ".join(names))
    return Task.ask(id, question, goal, shelves=shelves, order=fields)


def open_warehouse(rollout: Rollout) -> None:
    rollout.state = Warehouse({name: dict(goods) for name, goods in rollout.task.info["shelves"].items()})


def look(shelf: str, state: Warehouse) -> dict[str, int]:
    """Says what is on a shelf, and how many of each.

    Args:
        shelf: its letter.
    """
    if shelf not in state.shelves:
        raise ValueError(f"there is no shelf {shelf}; the shelves are {', '.join(state.shelves)}")
    return state.shelves[shelf]


def move(item: str, count: int, source: str, target: str, state: Warehouse) -> str:
    """Moves goods from one shelf to another.

    Args:
        item: the name of the goods.
        count: how many.
        source: the shelf they are on.
        target: the shelf they go to.
    """
    there = look(source, state).get(item, 0)
    look(target, state)
    if not 1 <= count <= there:
        raise ValueError(f"there are {there} {item} on shelf {source}")
    _shift(state.shelves, item, count, source, target)
    state.moves += 1
    return f"{state.shelves[target][item]} {item} are on shelf {target} now"


def in_order(state: Warehouse, answer: Shelves) -> float:
    """1 if every shelf holds exactly what it should, else 0."""
    return float(state.shelves == answer)


def moves(state: Warehouse) -> float:
    """How often goods were moved."""
    return float(state.moves)


def demonstrate(task: Task, sample: int) -> list[Message]:
    """Somebody who looks at every shelf and then moves what has to be moved."""
    wanted, shelves = task.info["order"], {name: dict(goods) for name, goods in task.info["shelves"].items()}
    messages: list[Message] = []

    def call(name: str, arguments: str, result: str) -> None:
        messages.append(tool_call(name, arguments, f"call_{len(messages)}"))
        messages.append({"role": "tool", "tool_call_id": f"call_{len(messages) - 1}", "name": name, "content": result})

    def carry(item: str, count: int, source: str, target: str) -> None:
        _shift(shelves, item, count, source, target)
        arguments = f'{{"item": "{item}", "count": {count}, "source": "{source}", "target": "{target}"}}'
        call("move", arguments, f"{shelves[target][item]} {item} are on shelf {target} now")

    item, other, home = wanted["item"], wanted["other"], wanted["home"]
    carry(item, wanted["count"], wanted["source"], wanted["target"])
    for name in list(shelves):
        found = shelves[name].get(other, 0)
        if name != home and found:
            carry(other, found, name, home)
    messages.append({"role": "assistant", "content": "Done."})
    return messages


def _shift(shelves: Shelves, item: str, count: int, source: str, target: str) -> None:
    if count:
        shelves[source][item] -= count
        if not shelves[source][item]:
            del shelves[source][item]
        shelves[target][item] = shelves[target].get(item, 0) + count
