import asyncio
from dataclasses import replace

import pytest

from envs import (
    ConfigError,
    Environment,
    Evaluation,
    Failure,
    InfrastructureError,
    Message,
    Rubric,
    Sampling,
    ScriptedClient,
    Task,
    Trajectory,
    derive_seed,
    evaluate,
    paired_gain,
)


def solve(messages: list[Message]) -> str:
    return str(int((messages[-1]["content"] or "")[0]) + 1)


def solve_even(messages: list[Message]) -> str:
    return solve(messages) if int((messages[-1]["content"] or "")[0]) % 2 == 0 else "?"


async def test_every_task_of_the_split_runs_in_order(sums: Environment) -> None:
    evaluation = await evaluate(sums, ScriptedClient(solve_even))
    assert [t.task.id for t in evaluation.trajectories] == [f"eval-{i}" for i in range(10)]
    assert repr(evaluation) == "Evaluation(10 rollouts, 10 scored)"
    summary = evaluation.summary()
    assert (summary["tasks"], summary["rollouts"], summary["scored"]) == (10, 10, 10)
    assert (summary["failures"], summary["stops"]) == ({}, {"completed": 10})
    assert summary["reward"]["mean"] == 0.5
    assert summary["reward"]["ci95"] == pytest.approx([0.2365931, 0.7634069])
    assert summary["rewards"]["correct"] == summary["reward"]
    assert summary["pass_at"]["1"]["mean"] == summary["pass_all"]["1"]["mean"] == 0.5


async def test_groups_give_pass_at_k(sums: Environment) -> None:
    asked: dict[str, int] = {}

    def sometimes(messages: list[Message]) -> str:
        question = messages[-1]["content"] or ""
        asked[question] = asked.get(question, 0) + 1
        return solve(messages) if asked[question] == 1 and question[0] in "01" else "?"

    evaluation = await evaluate(sums, ScriptedClient(sometimes), tasks=4, group_size=4)
    assert [(t.task.id, t.sample) for t in evaluation.trajectories[:5]] == [
        *(("eval-0", s) for s in range(4)),
        ("eval-1", 0),
    ]
    assert {k: found.mean for k, found in evaluation.pass_at().items()} == {1: 0.125, 2: 0.25, 4: 0.5}
    assert {k: found.mean for k, found in evaluation.pass_all().items()} == {1: 0.125, 2: 0.0, 4: 0.0}
    assert evaluation.pass_at("correct") == evaluation.pass_at()
    assert evaluation.tasks()[0] == {"id": "eval-0", "rollouts": 4, "failures": 0, "reward": 0.25, "correct": 0.25}


async def test_concurrency_is_bounded_and_used(sums: Environment) -> None:
    running = most = 0

    async def slow(messages: list[Message]) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return solve(messages)

    await evaluate(sums, ScriptedClient(slow), group_size=2, concurrency=3)
    assert most == 3


async def test_results_do_not_depend_on_concurrency(sums: Environment) -> None:
    async def seeds(concurrency: int, **given: int) -> dict[str, int | None]:
        client = ScriptedClient(solve)
        await evaluate(sums, client, group_size=2, concurrency=concurrency, seed=3)
        return {f"{r.messages[0]['content']} {r.sampling.seed}": r.sampling.seed for r in client.requests}

    one = await seeds(1)
    assert one == await seeds(16)
    assert len(one) == 20
    assert derive_seed(derive_seed(3, "eval-4", 1), 0) in one.values()


async def test_the_seed_of_the_sampling_goes_first(sums: Environment) -> None:
    client = ScriptedClient(solve)
    await evaluate(sums, client, tasks=1, sampling=Sampling(seed=9), seed=3)
    assert client.requests[0].sampling.seed == derive_seed(derive_seed(9, "eval-0", 0), 0)


async def test_tasks_may_be_others_than_the_splits(sums: Environment) -> None:
    client = ScriptedClient(solve)
    evaluation = await evaluate(sums, client, tasks=[Task.ask("own", "5+1", "6")])
    assert [(t.task.id, t.reward) for t in evaluation.trajectories] == [("own", 1.0)]
    assert (await evaluate(sums, client, split="train", tasks=2)).trajectories[1].task.id == "train-1"
    with pytest.raises(ConfigError, match="unknown split 'test'"):
        await evaluate(sums, client, split="test")
    with pytest.raises(ConfigError, match="concurrency=0; expected at least 1"):
        await evaluate(sums, client, concurrency=0)


async def test_what_is_done_is_not_run_again(sums: Environment) -> None:
    seen: list[Trajectory] = []
    first = await evaluate(sums, ScriptedClient(solve), tasks=4, group_size=2, on_trajectory=seen.append)
    assert len(seen) == 8
    client, new = ScriptedClient(solve), []

    async def keep(trajectory: Trajectory) -> None:
        await asyncio.sleep(0)
        new.append((trajectory.task.id, trajectory.sample))

    again = await evaluate(
        sums, client, tasks=5, group_size=2, done=first.trajectories[:7], on_trajectory=keep, concurrency=1
    )
    assert new == [("eval-3", 1), ("eval-4", 0), ("eval-4", 1)]
    assert len(client.requests) == 3
    assert again.trajectories[0] is first.trajectories[0]
    assert len(again.trajectories) == 10


async def test_groups_that_are_judged_together_are_run_together(sums: Environment) -> None:
    def size(trajectories: list[Trajectory]) -> list[float]:
        return [float(len(trajectories))] * len(trajectories)

    judged = replace(sums, rubric=Rubric({size: 1.0}))
    evaluation = await evaluate(judged, ScriptedClient(solve), tasks=3, group_size=2)
    assert [t.reward for t in evaluation.trajectories] == [2.0] * 6
    client = ScriptedClient(solve)
    await evaluate(judged, client, tasks=3, group_size=2, done=evaluation.trajectories[:3])
    assert len(client.requests) == 4, "the half-done group runs anew"


async def test_failures_are_counted_and_left_out(sums: Environment) -> None:
    def flaky(messages: list[Message]) -> str:
        if (messages[-1]["content"] or "")[0] in "01":
            raise InfrastructureError("down")
        return solve_even(messages)

    evaluation = await evaluate(sums, ScriptedClient(flaky), retries=0, group_size=2)
    summary = evaluation.summary()
    assert (summary["rollouts"], summary["scored"], summary["failures"]) == (20, 16, {"infrastructure": 4})
    assert summary["stops"] == {"completed": 16}
    assert summary["reward"]["mean"] == 0.5
    assert summary["reward"]["tasks"] == 8
    assert evaluation.tasks()[0] == {"id": "eval-0", "rollouts": 2, "failures": 2}


async def test_when_everything_failed_there_is_no_mean() -> None:
    failed = Trajectory(Task.ask("a", "?"), failure=Failure("infrastructure", "X", "down"))
    evaluation = Evaluation([failed])
    assert evaluation.summary()["reward"] is None
    assert evaluation.summary()["pass_at"] == {}
    with pytest.raises(ConfigError, match="none of the 1 rollouts was scored"):
        evaluation.interval()


async def test_an_error_of_the_user_ends_the_evaluation(sums: Environment) -> None:
    async def refuse(messages: object) -> str:
        if len(client.requests) == 5:
            raise ConfigError("no such model")
        await asyncio.sleep(60)
        return ""

    client = ScriptedClient(refuse)
    with pytest.raises(ConfigError, match="no such model"):
        await asyncio.wait_for(evaluate(sums, client), 30)


async def test_gains_are_paired_by_task(sums: Environment) -> None:
    before = await evaluate(sums, ScriptedClient(solve_even), group_size=2)
    after = await evaluate(sums, ScriptedClient(solve), tasks=6)
    gain = paired_gain(before, after)
    assert (gain.mean, gain.tasks) == (0.5, 6)
    assert gain.standard_error == pytest.approx(0.2236068)
    assert gain == paired_gain(before, after, "correct")
    other = await evaluate(sums, ScriptedClient(solve), split="train", tasks=2)
    with pytest.raises(ConfigError, match=r"share no scored task \(10 and 2\)"):
        paired_gain(before, other)
    with pytest.raises(ConfigError, match="unknown reward or metric 'corect'; did you mean 'correct'"):
        paired_gain(before, after, "corect")
