"""What the bundled environments are like, without a model; writes `envs/library/README.md`.

    python benchmarks/environments.py

It takes a Python that has the packages of all of them: `.venv-environments/bin/python`, after `make test-environments`.
Each is loaded in a process of its own. The rewards are means over the first 32 tasks of the split "eval" of: nothing;
ten random words; the question said back; the gold answer to the next task (right in form only); the gold answer (the
best of 8 demonstrators).
"""

import asyncio
import json
import random
import resource
import string
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from envs import Environment, Message, Sampling, ScriptedClient, Task, Trajectory, load_environment, run_task
from envs.resolve import LIBRARY

TASKS = 32
COLUMNS = ("tasks", "turns", "characters", "empty", "random", "echo", "form only", "gold", "memory")
HEAD = """\
# The bundled environments

Each is an installable project of its own with a README. Written by `python benchmarks/environments.py`: turns and
characters (prompt and answers) are those of a gold rollout, rewards are means over 32 evaluation tasks, memory is the
peak of a process that ran all of this. No model is involved.

"""


async def said(environment: Environment, task: Task, messages: Sequence[Message | str]) -> Trajectory:
    """A rollout in which the model says one thing after the other, the last one again and again."""
    rest = iter(messages)
    client = ScriptedClient(lambda _: next(rest, messages[-1]))
    trajectory = await run_task(environment, task, client, sampling=Sampling(seed=0), retries=0)
    if trajectory.reward is None:
        raise RuntimeError(f"{environment.name}, task '{task.id}': {trajectory.failure}")
    return trajectory


def gold(environment: Environment, task: Task, sample: int) -> list[Message]:
    return [m for m in environment.demonstration(task, sample) if m["role"] == "assistant"]


async def measure(name: str) -> dict[str, Any]:
    environment = load_environment(name)
    tasks = list(environment.tasks.split("eval").head(TASKS))
    rng = random.Random(0)

    async def mean(says: Callable[[int, Task], Sequence[Message | str]]) -> float:
        rewards = [(await said(environment, task, says(i, task))).reward or 0.0 for i, task in enumerate(tasks)]
        return sum(rewards) / len(rewards)

    def words(_: int, __: Task) -> list[Message | str]:
        return [" ".join("".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(10))]

    shown = [[await said(environment, task, gold(environment, task, i)) for i in range(8)] for task in tasks]
    best = [max(rollouts, key=lambda rollout: rollout.reward or 0.0) for rollouts in shown]
    texts = [sum(len(json.dumps(message)) for message in rollout.messages) for rollout in best]
    return {
        "tasks": " / ".join(f"{len(environment.tasks.split(split)):,} {split}" for split in environment.tasks.splits),
        "turns": f"{sum(len(rollout.turns) for rollout in best) / len(best):.1f}",
        "characters": f"{sum(texts) / len(texts):,.0f}",
        "empty": f"{await mean(lambda _, __: ['']):.2f}",
        "random": f"{await mean(words):.2f}",
        "echo": f"{await mean(lambda _, task: [str(task.prompt[-1]['content'])]):.2f}",
        "form only": f"{await mean(lambda i, _: gold(environment, tasks[(i + 1) % len(tasks)], 0)):.2f}",
        "gold": f"{sum(rollout.reward or 0.0 for rollout in best) / len(best):.2f}",
        "memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB",
    }


def main() -> None:
    if len(sys.argv) == 2:
        print(json.dumps(asyncio.run(measure(sys.argv[1]))))
        return
    lines = [f"| environment | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for name in sorted(path.parent.name for path in LIBRARY.glob("*/pyproject.toml")):
        ran = subprocess.run([sys.executable, __file__, name], check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(ran.stdout.splitlines()[-1])
        lines.append(f"| [{name}]({name}/README.md) | {' | '.join(found[column] for column in COLUMNS)} |")
        print(lines[-1], flush=True)
    Path(LIBRARY, "README.md").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
