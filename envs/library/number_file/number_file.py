"""Answer a question about a file of numbers with a live Python: too much for the head, little for a program.

The model's code runs in a sandbox of the rollout's own; its variables stay from one call to the next.
"""

import json
import random
import re
from collections.abc import Callable, Mapping
from itertools import pairwise

from envs import (
    Environment,
    Hooks,
    Limits,
    Message,
    Rollout,
    Rubric,
    SandboxPool,
    Task,
    Taskset,
    derive_seed,
    python_repl,
)
from envs.clients.scripted import tool_call

QUESTION = "The file numbers-{seed}.json holds a list of {count} whole numbers. {asked} Answer with that number only."
QUESTIONS: Mapping[str, tuple[str, str]] = {
    "multiples": ("What is the sum of those that {n} divides?", "sum(x for x in numbers if x % {n} == 0)"),
    "rank": ("Which one is number {n} in ascending order, the smallest being number 1?", "sorted(numbers)[{n} - 1]"),
    "digits": ("How many have a digit sum of {n}?", "sum(sum(map(int, str(x))) == {n} for x in numbers)"),
    "gaps": (
        "How many are followed by one that is larger by more than {n}?",
        "sum(b - a > {n} for a, b in zip(numbers, numbers[1:]))",
    ),
}


def load_environment(
    count: int = 1000, train_tasks: int = 256, eval_tasks: int = 96, max_turns: int = 5, seed: int = 0, most: int = 32
) -> Environment:
    """Questions about lists of numbers below 10,000.

    Args:
        count: how many numbers a file has.
        train_tasks: how many tasks there are to train on.
        eval_tasks: how many tasks there are to evaluate on.
        max_turns: the most answers of the model.
        seed: decides the questions and the numbers.
        most: how many sandboxes there may be at once.
    """
    counts = {"train": train_tasks, "eval": eval_tasks}

    def tasks(split: str) -> list[Task]:
        return [question(f"{split}-{i}", count, derive_seed(seed, split, i)) for i in range(counts[split])]

    pool = SandboxPool(limits=Limits(wall=10, memory=2**29, disk=2**26, deadline=600), most=most)
    return Environment(
        tasks=Taskset.from_function(tasks),
        harness=python_repl(pool, max_turns=max_turns, hooks=[Hooks(on_setup=put_file)]),
        rubric=Rubric({right_number: 1.0, calls: 0.0}),
        demonstrate=demonstrate,
    )


def question(id: str, count: int, seed: int) -> Task:
    draw = random.Random(seed)
    kind = draw.choice(list(QUESTIONS))
    n = draw.randint(3, 30)
    asked, expression = (text.format(n=n) for text in QUESTIONS[kind])
    answer = _ANSWERS[kind](numbers(seed, count), n)
    return Task.ask(
        id, QUESTION.format(seed=seed, count=count, asked=asked), answer, numbers=[seed, count], expression=expression
    )


def numbers(seed: int, count: int) -> list[int]:
    """The file's content."""
    draw = random.Random(derive_seed(seed, "numbers"))
    return [draw.randrange(10_000) for _ in range(count)]


_ANSWERS: Mapping[str, Callable[[list[int], int], int]] = {
    "multiples": lambda xs, n: sum(x for x in xs if x % n == 0),
    "rank": lambda xs, n: sorted(xs)[n - 1],
    "digits": lambda xs, n: sum(sum(map(int, str(x))) == n for x in xs),
    "gaps": lambda xs, n: sum(b - a > n for a, b in pairwise(xs)),
}


async def put_file(rollout: Rollout) -> None:
    content = json.dumps(numbers(*rollout.task.info["numbers"]))
    await rollout.state.sandbox.write(f"numbers-{rollout.task.info['numbers'][0]}.json", content.encode())


def right_number(completion: str, answer: int) -> float:
    """1 if the number, and no other, is in the answer; else 0."""
    found = {int(text.replace(",", "")) for text in re.findall(r"-?\d[\d,]*", completion)}
    return float(found == {answer})


def calls(messages: list[Message]) -> float:
    """How often Python was called."""
    return float(sum(message["role"] == "tool" for message in messages))


def demonstrate(task: Task, sample: int) -> list[Message]:
    """Somebody who reads the file in one call and computes in the next."""
    file = f"numbers-{task.info['numbers'][0]}.json"
    read = json.dumps({"code": f"import json\nnumbers = json.load(open('{file}'))\nlen(numbers)"})
    compute = json.dumps({"code": task.info["expression"]})
    count = f"{task.info['numbers'][1]}\n"
    return [
        tool_call("python", read, "call_0"),
        {"role": "tool", "tool_call_id": "call_0", "name": "python", "content": count},
        tool_call("python", compute, "call_1"),
        {"role": "tool", "tool_call_id": "call_1", "name": "python", "content": f"{task.answer}\n"},
        {"role": "assistant", "content": str(task.answer)},
    ]
