import asyncio
from dataclasses import replace

import pytest

from envs import (
    Environment,
    InfrastructureError,
    Message,
    Rollout,
    Rubric,
    Sampling,
    ScriptedClient,
    Task,
    Taskset,
    Trajectory,
    derive_seed,
    load_environment,
    single_turn,
)
from rl.rollout.collect import Collector, DeadlineError, EnvironmentBug

TASKS = [Task.ask(f"t{i}", f"{i}+1", str(i + 1)) for i in range(3)]


def correct(completion: str, answer: str) -> float:
    return float(completion == answer)


SUMS = Environment(Taskset({"train": TASKS}), single_turn(), Rubric({correct: 1.0}))


def add(messages: list[Message]) -> str:
    return str(eval(str(messages[-1]["content"])))


async def test_groups_come_in_the_order_of_the_tasks() -> None:
    async def script(messages: list[Message]) -> str:
        number = len(client.requests)
        await asyncio.sleep(0.001 * (7 - number))  # later requests answer sooner
        return add(messages)

    client = ScriptedClient(script)
    groups = await Collector(SUMS, client, 2, Sampling()).collect(TASKS[::-1], seed=0)
    assert [[(t.task.id, t.sample, t.reward) for t in group] for group in groups] == [
        [("t2", 0, 1.0), ("t2", 1, 1.0)],
        [("t1", 0, 1.0), ("t1", 1, 1.0)],
        [("t0", 0, 1.0), ("t0", 1, 1.0)],
    ]


async def test_randomness_derives_from_the_steps_seed() -> None:
    for sampling in (Sampling(0.7, max_tokens=5), Sampling(0.7, max_tokens=5, seed=1)):
        client = ScriptedClient(add)
        await Collector(SUMS, client, 2, sampling).collect(TASKS[:1], seed=9)
        seeds = {derive_seed(derive_seed(9, "t0", sample), 0) for sample in range(2)}
        assert {request.sampling.seed for request in client.requests} == seeds
        assert {(r.sampling.temperature, r.sampling.max_tokens) for r in client.requests} == {(0.7, 5)}


async def test_what_was_journaled_is_not_run_again() -> None:
    client, seen = ScriptedClient(add), []
    collector = Collector(SUMS, client, 2, Sampling())
    groups = await collector.collect(TASKS, 0)
    done = [groups[0][1], *groups[2]]
    client.requests.clear()
    again = await collector.collect(TASKS, 0, done, seen.append)
    assert [request.messages[0]["content"] for request in client.requests] == ["0+1", "1+1", "1+1"]
    assert again[0][1] is groups[0][1] and again[2] == groups[2]
    assert [(t.task.id, t.sample) for t in seen] == [("t0", 0), ("t1", 0), ("t1", 1)]


async def test_infrastructure_that_fails_is_tried_again_and_then_left_out() -> None:
    def script(messages: list[Message]) -> str:
        if messages[0]["content"] == "1+1":
            raise InfrastructureError("server gone")
        return add(messages)

    client = ScriptedClient(script)
    groups = await Collector(SUMS, client, 2, Sampling(), retries=1).collect(TASKS, 0)
    assert [[t.reward for t in group] for group in groups] == [[1.0, 1.0], [None, None], [1.0, 1.0]]
    assert len(client.requests) == 2 + 4 + 2
    with pytest.raises(
        InfrastructureError, match="all 2 rollouts of the step failed; the first: InfrastructureError: server gone"
    ):
        await Collector(SUMS, client, 2, Sampling(), retries=0).collect(TASKS[1:2], 0)


async def test_a_reward_function_that_raises_is_an_error_to_show() -> None:
    def broken(completion: str) -> float:
        return 1 / (len(completion) - 1)

    environment = replace(SUMS, rubric=Rubric({broken: 1.0}))
    with pytest.raises(EnvironmentBug) as raised:
        await Collector(environment, ScriptedClient(add), 2, Sampling()).collect(TASKS, 0)
    text = str(raised.value)
    assert text.startswith("broken raised ZeroDivisionError on task 't0': division by zero\nTraceback")
    assert "return 1 / (len(completion) - 1)" in text


async def test_a_harness_that_raises_is_an_error_to_show() -> None:
    async def buggy(rollout: Rollout) -> str:
        if rollout.task.id == "t1":
            raise KeyError("board")
        await rollout.complete()
        return "completed"

    with pytest.raises(EnvironmentBug, match="harness raised KeyError on task 't1': 'board'"):
        await Collector(replace(SUMS, harness=buggy), ScriptedClient(add), 1, Sampling()).collect(TASKS, 0)


async def test_rollouts_that_never_end_are_named_and_the_others_are_kept() -> None:
    async def script(messages: list[Message]) -> str:
        if messages[0]["content"] == "1+1":
            await asyncio.Event().wait()
        return add(messages)

    kept: list[Trajectory] = []
    collector = Collector(SUMS, ScriptedClient(script), 2, Sampling(), deadline=0.2)
    with pytest.raises(DeadlineError, match=r"2 of the step's 6 rollouts .* not done after 0.2 s, of the tasks t1;"):
        await collector.collect(TASKS, 0, on_trajectory=kept.append)
    assert sorted((t.task.id, t.sample) for t in kept) == [("t0", 0), ("t0", 1), ("t2", 0), ("t2", 1)]


async def test_a_group_may_have_a_greedy_rollout_beside_it() -> None:
    client, seen = ScriptedClient(add), []
    collector = Collector(SUMS, client, 2, Sampling(0.7), greedy=True)
    groups = await collector.collect(TASKS[:2], 5, on_trajectory=seen.append)
    assert [[(t.task.id, t.sample) for t in group] for group in groups] == [
        [("t0", 0), ("t0", 1), ("t0", -1)],
        [("t1", 0), ("t1", 1), ("t1", -1)],
    ]
    assert sorted(request.sampling.temperature for request in client.requests) == [0, 0, 0.7, 0.7, 0.7, 0.7]
    assert len(seen) == 6
    client.requests.clear()
    done = [groups[0][2], *groups[1][:2]]
    again = await collector.collect(TASKS[:2], 5, done)
    assert [r.sampling.temperature for r in client.requests] == [0.7, 0.7, 0] and again[0][2] is groups[0][2]


async def test_functions_that_judge_groups_see_whole_groups() -> None:
    def first(trajectories: list[Trajectory]) -> list[float]:
        return [float(t.sample == 0) for t in trajectories]

    environment = replace(SUMS, rubric=Rubric({first: 1.0}))
    groups = await Collector(environment, ScriptedClient(add), 3, Sampling()).collect(TASKS[:2], 0)
    assert [[t.reward for t in group] for group in groups] == [[1.0, 0.0, 0.0]] * 2


async def test_a_game_of_several_turns() -> None:
    environment = load_environment("wordle")
    task = environment.tasks.split("train")[0]
    script = iter(["slate", "nonsense!", str(task.answer)])
    client = ScriptedClient(lambda messages: next(script))
    ((game,),) = await Collector(environment, client, 1, Sampling()).collect([task], 0)
    assert len(game.turns) == 3 and game.failure is None
    assert game.rewards == {"solved": 1.0, "speed": pytest.approx(5 / 6), "valid_guesses": pytest.approx(2 / 3)}
    assert [request.previous for request in client.requests] == [None, *game.turns[:2]]
