"""Find out from log files, in a shell, and leave the answer in a file.

The agent works in a sandbox of its own. When the turns are over, the harness takes `answer.txt` down; that text alone
is scored, outside of the sandbox, where nothing the agent did can reach.
"""

import json
import random
from collections import Counter
from typing import Literal

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
    bash_agent,
    derive_seed,
)
from envs.clients.scripted import tool_call

Kind = Literal["count", "host", "slowest"]

HOSTS = ("ash", "birch", "cedar", "elm", "fir", "hazel")
LEVELS = ("DEBUG", "INFO", "INFO", "INFO", "WARNING", "ERROR")
QUESTIONS: dict[Kind, tuple[str, str]] = {
    "count": ("How many lines of level {level} are about host {host}?", "grep -rh ' {level} {host} ' logs-* | wc -l"),
    "host": (
        "Which host has the most lines of level {level}?",
        "grep -rh ' {level} ' logs-* | awk '{{print $4}}' | sort | uniq -c | sort -rn | awk 'NR == 1 {{print $2}}'",
    ),
    "slowest": (
        "What is the longest time, in ms, of a request to host {host}?",
        "grep -rh ' {host} ' logs-* | sed 's/.*took //; s/ ms//' | sort -n | tail -1",
    ),
}
PROMPT = "The folder logs-{seed} holds one log file per day. {asked} Write the answer, and nothing else, to answer.txt."


def load_environment(
    days: int = 4, lines: int = 60, train_tasks: int = 256, eval_tasks: int = 96, max_turns: int = 8, seed: int = 0,
    most: int = 32,
) -> Environment:  # fmt: skip
    """Questions about the log files of a few machines.

    Args:
        days: how many files there are.
        lines: how many lines each has.
        train_tasks: how many tasks there are to train on.
        eval_tasks: how many tasks there are to evaluate on.
        max_turns: the most answers of the model.
        seed: decides the questions and the logs.
        most: how many sandboxes there may be at once.
    """
    counts = {"train": train_tasks, "eval": eval_tasks}

    def tasks(split: str) -> list[Task]:
        return [question(f"{split}-{i}", days, lines, derive_seed(seed, split, i)) for i in range(counts[split])]

    pool = SandboxPool(limits=Limits(wall=10, memory=2**29, disk=2**26, deadline=600), most=most)
    return Environment(
        tasks=Taskset.from_function(tasks),
        harness=bash_agent(pool, max_turns=max_turns, hooks=[Hooks(on_setup=put_logs, on_stop=take_answer)]),
        rubric=Rubric({right_answer: 1.0, answered: 0.0}),
        demonstrate=demonstrate,
    )


def question(id: str, days: int, lines: int, seed: int) -> Task:
    draw = random.Random(seed)
    kind = draw.choice(list(QUESTIONS))
    level, host = draw.choice(("WARNING", "ERROR", "DEBUG")), draw.choice(HOSTS)
    asked, command = (text.format(level=level, host=host) for text in QUESTIONS[kind])
    entries = [line for text in logs(seed, days, lines).values() for line in text.splitlines()]
    answer = solve(kind, entries, level, host)
    return Task.ask(id, PROMPT.format(asked=asked, seed=seed), answer, logs=[seed, days, lines], command=command)


def logs(seed: int, days: int, lines: int) -> dict[str, str]:
    """The files, by name."""
    draw = random.Random(derive_seed(seed, "logs"))
    return {
        f"day-{day}.log": "".join(
            f"2031-05-{day:02} {i // 60:02}:{i % 60:02} {draw.choice(LEVELS)} {draw.choice(HOSTS)} "
            f"request {draw.randrange(10**6)} took {draw.randrange(1, 5000)} ms\n"
            for i in range(lines)
        )
        for day in range(1, days + 1)
    }


def solve(kind: Kind, entries: list[str], level: str, host: str) -> str:
    words = [line.split() for line in entries]
    if kind == "count":
        return str(sum(w[2] == level and w[3] == host for w in words))
    if kind == "slowest":
        return str(max(int(w[-2]) for w in words if w[3] == host))
    often = Counter(w[3] for w in words if w[2] == level)
    return max(often, key=lambda name: (often[name], name))  # of equals the last, as `sort -rn` has it


async def put_logs(rollout: Rollout) -> None:
    rollout.state.answer = None
    for name, text in logs(*rollout.task.info["logs"]).items():
        await rollout.state.sandbox.write(f"logs-{rollout.task.info['logs'][0]}/{name}", text.encode())


async def take_answer(rollout: Rollout) -> None:
    try:
        rollout.state.answer = (await rollout.state.sandbox.read("answer.txt"))[:1000].decode("utf-8", "replace")
    except OSError:  # it wrote none, or something that is no file
        rollout.state.answer = None


def right_answer(state: object, answer: str) -> float:
    """1 if answer.txt holds the answer, white space around it aside; else 0."""
    return float(_answer(state) == answer)


def answered(state: object) -> float:
    """1 if there is an answer.txt."""
    return float(_answer(state) is not None)


def _answer(state: object) -> str | None:
    found = getattr(state, "answer", None)
    return None if found is None else str(found).strip()


def demonstrate(task: Task, sample: int) -> list[Message]:
    """Somebody who knows the one command."""
    command = json.dumps({"command": f"{task.info['command']} > answer.txt"})
    return [
        tool_call("bash", command, "call_0"),
        {"role": "tool", "tool_call_id": "call_0", "name": "bash", "content": "[no output]"},
        {"role": "assistant", "content": "Done."},
    ]
