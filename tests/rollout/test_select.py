"""Which groups are trained on, which tasks are asked, and that a resumed run chooses alike."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from envs import ConfigError, Environment, Rubric, Sampling, Task, Taskset, Trajectory, single_turn
from envs.clients.scripted import ScriptedClient
from rl.cli.build import make_selection
from rl.data.pack import Segment
from rl.rollout.collect import Collector
from rl.rollout.journal import StepJournal
from rl.rollout.schedule import Schedule
from rl.rollout.select import LastRewards, NothingToLearn, Selection, select, within
from rl.rollout.steps import Steps

TASKS = [Task.ask(f"t{i}", str(i)) for i in range(8)]


def group(name: str, *rewards: float | None) -> list[Trajectory]:
    return [Trajectory(Task.ask(name, "?"), n, reward=reward) for n, reward in enumerate(rewards)]


def test_gates_by_name() -> None:
    def passed(**settings: object) -> list[bool]:
        gate = make_selection(settings).gate
        return [gate(rewards) for rewards in ([0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5], [])]

    assert passed() == [True] * 5
    assert passed(gate="differ") == [False, True, False, False, False]
    assert passed(gate="between", gate_low=0.2, gate_high=0.8) == [False, True, False, True, False]
    with pytest.raises(ConfigError, match=r"selection: gate is 'difer'; expected one of every, differ, between"):
        make_selection({"gate": "difer"})
    with pytest.raises(ConfigError, match=r"selection: pool_low=0.9 is above pool_high=0.5"):
        make_selection({"pool": "between", "pool_low": 0.9, "pool_high": 0.5})
    with pytest.raises(ConfigError, match="rouns"):
        make_selection({"rouns": 2})


def test_what_did_not_pass_is_replaced_for_so_many_rounds() -> None:
    asked: list[list[str]] = []
    selection = make_selection({"gate": "differ", "rounds": 3})

    async def roll(tasks: Sequence[Task]) -> list[list[Trajectory]]:
        asked.append([task.id for task in tasks])
        return [group(task.id, 0.0, float(int(task.id[1:]) % 2)) for task in tasks]  # odd tasks teach

    def draw(number: int, count: int, had: set[str]) -> list[Task]:
        return [task for task in TASKS if task.id not in had][:count]

    chosen = asyncio.run(select(selection, 3, draw, roll))
    assert asked == [["t0", "t1", "t2"], ["t3", "t4"], ["t5"]]
    assert [g[0].task.id for g in chosen.kept] == ["t1", "t3", "t5"] and chosen.short == 0
    assert [g[0].task.id for g in chosen.sampled] == ["t1", "t3", "t5", "t0", "t2", "t4"]
    assert chosen.metrics() == {"selection/kept": 0.5, "selection/rounds": 3.0, "selection/short": 0.0}
    fewer = asyncio.run(select(selection._replace(rounds=2), 3, draw, roll))
    assert (len(fewer.kept), fewer.short) == (2, 1)
    with pytest.raises(NothingToLearn, match=r"none of 1 groups, sampled in 1 rounds, .* of mean reward 0 to 0\. Take"):
        asyncio.run(select(selection._replace(rounds=1), 1, draw, roll))


def test_rollouts_are_left_out_by_their_advantage() -> None:
    parts = [
        Segment([1], [True], [0.0], 0.05, 1),
        Segment([2], [True], [0.0], -0.5, 2),
        Segment([3], [True], [0.0], -0.5, 2, starts_rollout=False),
        Segment([4], [True], [0.0], 9.0, 1),
    ]
    kept = within(parts, Selection(advantage_low=0.1, advantage_high=3.0))
    assert [part.tokens for part in kept] == [[2], [3]]
    assert within(parts, Selection()) == parts


def test_draws_are_of_the_step_and_take_the_eligible_first() -> None:
    schedule = Schedule(TASKS, 2, seed=0)

    def drawn(step: int, number: int, count: int, had: set[str], odd: bool) -> list[str]:
        eligible = (lambda name: int(name[1:]) % 2 == 1) if odd else (lambda name: True)
        return [task.id for task in schedule.drawn(step, number, count, had, eligible)]

    first = drawn(4, 0, 4, set(), odd=True)
    assert sorted(first) == ["t1", "t3", "t5", "t7"] and first == drawn(4, 0, 4, set(), odd=True)
    orders = [drawn(*draw, 8, set(), odd=False) for draw in ((4, 0), (4, 1), (5, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    more = drawn(4, 0, 6, {"t1"}, odd=True)
    assert sorted(more[:3]) == ["t3", "t5", "t7"] and "t1" not in more and len(more) == 6
    assert len(drawn(4, 0, 99, {"t1", "t2"}, odd=False)) == 6


def test_what_is_known_of_tasks_ends_with_the_checkpoint(tmp_path: Path) -> None:
    last = LastRewards(tmp_path / "tasks.jsonl", 0)
    last.add(1, [group("a", 0.0, 1.0), group("b", None, None)])
    last.add(2, [group("a", 1.0, None), group("c", 0.0)])
    assert last.after(1) == {"a": 0.5}
    with (tmp_path / "tasks.jsonl").open("a") as file:
        file.write('{"update": 3, "rew')
    again = LastRewards(tmp_path / "tasks.jsonl", 2)
    assert again.after(2) == {"a": 1.0, "c": 0.0}
    assert LastRewards(tmp_path / "tasks.jsonl", 1).after(9) == {"a": 0.5}, "update 2 is about to be made again"


def odd(completion: str) -> float:
    return float(completion == "1")


def test_a_step_that_was_cut_short_is_selected_alike_and_sampled_once(tmp_path: Path) -> None:
    """Tasks t0, t2, … are always failed; the others are answered rightly by every second rollout."""
    answered: list[str] = []

    def answer(messages: object) -> str:
        question = str(messages[-1]["content"])  # type: ignore[index]
        answered.append(question)
        return str(answered.count(question) % 2) if int(question) % 2 else "no"

    environment = Environment(Taskset({"train": TASKS}), single_turn(), Rubric({odd: 1.0}))
    collector = Collector(environment, ScriptedClient(answer), 2, Sampling())
    selection = make_selection({"gate": "differ", "rounds": 8, "pool": "between", "pool_low": 0.1})

    def steps(updates: int) -> Steps:
        last = LastRewards(tmp_path / "tasks.jsonl", updates)
        return Steps(tmp_path, 7, Schedule(TASKS, 4, 0), collector, selection, 4, 0, last)

    async def ids(sampler: Steps, step: int) -> list[str]:
        return [g[0].task.id for g in await sampler.collect(step)]

    async def scenario() -> None:
        first = steps(0)
        kept = await ids(first, 0)
        assert len(kept) == 4 and all(int(name[1:]) % 2 for name in kept)
        asked = len(answered)
        assert await ids(steps(0), 0) == kept and len(answered) == asked, "journaled, not sampled again"
        metrics = first.seal(0).metrics()
        assert metrics["selection/kept"] < 1 and metrics["selection/short"] == 0
        assert len(StepJournal(tmp_path / "rollouts", 1).done()) == asked, "what was left out is on file, too"
        failed = {g for g, mean in first.last.after(1).items() if mean == 0} if first.last else set()
        second = await ids(steps(1), 1)
        assert failed and not failed & {f"t{question}" for question in answered[asked:]}
        assert second == await ids(first, 1)

    asyncio.run(scenario())
