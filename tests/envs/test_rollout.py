import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from envs import (
    Completion,
    ConfigError,
    ContextLengthError,
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
    run_group,
    run_task,
)

TASK = Task.ask("a", "2+2", "4")
Drive = Callable[[Rollout], Awaitable[str]]


def correct(completion: str, answer: str) -> float:
    return float(completion == answer)


def environment(harness: Drive, timeout: float | None = None) -> Environment:
    return Environment(Taskset({"train": [TASK]}), harness, Rubric({correct: 1.0}), timeout=timeout)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


async def twice(rollout: Rollout) -> str:
    await rollout.complete()
    rollout.messages.append(user("again"))
    await rollout.complete()
    return "completed"


async def test_turns_record_what_was_added_and_continue_the_last_one() -> None:
    client = ScriptedClient(["3", "4"])
    record = await run_task(environment(twice), TASK, client)
    assert [turn.messages for turn in record.turns] == [(user("2+2"),), (user("again"),)]
    assert [turn.fresh for turn in record.turns] == [True, False]
    assert [turn.completion.message["content"] for turn in record.turns] == ["3", "4"]
    assert [request.previous for request in client.requests] == [None, record.turns[0]]
    assert list(client.requests[1].messages) == [user("2+2"), assistant("3"), user("again")]
    assert (record.stop, record.reward, record.attempts) == ("completed", 1.0, 1)
    assert record.messages == [user("2+2"), assistant("3"), user("again"), assistant("4")]


async def test_a_rewritten_conversation_starts_a_fresh_turn() -> None:
    async def rewrite(rollout: Rollout) -> str:
        await rollout.complete()
        rollout.messages = [user("summary")]
        await rollout.complete()
        rollout.messages[0]["content"] = "changed in place"
        await rollout.complete()
        return "completed"

    client = ScriptedClient(["1", "2", "4"])
    record = await run_task(environment(rewrite), TASK, client)
    assert [turn.fresh for turn in record.turns] == [True, True, True]
    assert record.turns[2].messages == (user("changed in place"), assistant("2"))
    assert [request.previous for request in client.requests] == [None, None, None]
    assert TASK.prompt == (user("2+2"),)


async def test_what_follows_the_last_completion_is_the_tail() -> None:
    async def farewell(rollout: Rollout) -> str:
        await rollout.complete()
        rollout.messages.append(user("bye"))
        return "max_turns"

    record = await run_task(environment(farewell), TASK, ScriptedClient(["4"]))
    assert record.tail == (user("bye"),)
    assert record.messages[-1] == user("bye")
    assert record.reward == 1.0


async def test_seeds_come_from_run_task_sample_and_turn_alone() -> None:
    client = ScriptedClient(["3", "4"])
    await run_task(environment(twice), TASK, client, sample=2, sampling=Sampling(seed=5))
    rollout_seed = derive_seed(5, "a", 2)
    assert [r.sampling.seed for r in client.requests] == [derive_seed(rollout_seed, 0), derive_seed(rollout_seed, 1)]
    unseeded = ScriptedClient(["3", "4"])
    await run_task(environment(twice), TASK, unseeded)
    assert [r.sampling.seed for r in unseeded.requests] == [None, None]


async def test_a_turn_may_override_its_sampling() -> None:
    async def brief(rollout: Rollout) -> str:
        await rollout.complete(max_tokens=3)
        return "completed"

    async def wrong(rollout: Rollout) -> str:
        await rollout.complete(max_token=3)
        return "completed"

    client = ScriptedClient(["4"])
    await run_task(environment(brief), TASK, client, sampling=Sampling(temperature=0.5))
    assert client.requests[0].sampling == Sampling(temperature=0.5, max_tokens=3)
    with pytest.raises(ConfigError, match="unknown sampling field 'max_token'; did you mean 'max_tokens'"):
        await run_task(environment(wrong), TASK, client)


@pytest.mark.parametrize("error", [InfrastructureError("server gone"), ConnectionResetError("x"), TimeoutError("y")])
async def test_infrastructure_failures_are_tried_again_from_a_fresh_start(error: Exception) -> None:
    states = []

    async def fragile(rollout: Rollout) -> str:
        states.append(rollout.state)
        rollout.messages.append(user(str(len(states))))
        await rollout.complete()
        if len(states) < 3:
            raise error
        return "completed"

    client = ScriptedClient(lambda messages: "4")
    record = await run_task(environment(fragile), TASK, client, retries=2, sampling=Sampling(seed=1))
    assert (record.reward, record.failure, record.attempts) == (1.0, None, 3)
    assert record.turns[0].messages == (user("2+2"), user("3"))
    assert len({id(state) for state in states}) == 3
    assert len({request.sampling.seed for request in client.requests}) == 1, "a retry is the same rollout"

    states.clear()
    record = await run_task(environment(fragile), TASK, client, retries=1)
    assert record.failure is not None
    assert (record.failure.kind, record.failure.error) == ("infrastructure", type(error).__name__)
    assert (record.reward, record.rewards, record.attempts) == (None, {}, 2)


async def test_an_infrastructure_failure_inside_a_task_group_is_one_too() -> None:
    async def fail() -> None:
        raise InfrastructureError("sandbox gone")

    async def grouped(rollout: Rollout) -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
        return "completed"

    record = await run_task(environment(grouped), TASK, ScriptedClient([]), retries=0)
    assert record.failure is not None
    assert record.failure.kind == "infrastructure"
    assert "sandbox gone" in record.failure.traceback


async def test_a_bug_in_the_harness_is_shown_and_not_tried_again() -> None:
    calls = 0

    async def buggy(rollout: Rollout) -> str:
        nonlocal calls
        calls += 1
        return {}["missing"]

    record = await run_task(environment(buggy), TASK, ScriptedClient([]))
    assert record.failure is not None
    assert (record.failure.kind, record.failure.error) == ("harness", "KeyError")
    assert 'return {}["missing"]' in record.failure.traceback
    assert (record.reward, calls) == (None, 1)


async def test_a_missing_file_is_a_bug_and_no_network_trouble() -> None:
    async def forgetful(rollout: Rollout) -> str:
        raise FileNotFoundError("words.txt")

    record = await run_task(environment(forgetful), TASK, ScriptedClient([]))
    assert record.failure is not None
    assert (record.failure.kind, record.attempts) == ("harness", 1)


async def test_a_harness_says_why_it_stopped() -> None:
    async def silent(rollout: Rollout) -> str:
        return None  # type: ignore[return-value]

    record = await run_task(environment(silent), TASK, ScriptedClient([]))
    assert record.failure is not None
    assert record.failure.message.startswith("the harness returned None; expected the word for why it stopped")


@pytest.mark.parametrize("error", [ConfigError("no such model"), ContextLengthError("too long")])
async def test_what_the_user_must_solve_is_raised_on_the_first_turn(error: Exception) -> None:
    def refuse(messages: object) -> str:
        raise error

    with pytest.raises(type(error), match=str(error)):
        await run_task(environment(twice), TASK, ScriptedClient(refuse))


async def test_running_out_of_context_later_is_scored() -> None:
    def script(messages: list[Message]) -> str:
        if len(messages) > 1:
            raise ContextLengthError("too long")
        return "4"

    record = await run_task(environment(twice), TASK, ScriptedClient(script))  # type: ignore[arg-type]
    assert (record.stop, record.reward, record.failure) == ("context_length", 1.0, None)
    assert record.tail == (user("again"),)


async def test_running_out_of_time_is_scored() -> None:
    async def slow(rollout: Rollout) -> str:
        await rollout.complete()
        await asyncio.sleep(60)
        return "completed"

    record = await run_task(environment(slow, timeout=0.5), TASK, ScriptedClient(["4"]))
    assert (record.stop, record.reward, record.failure) == ("timeout", 1.0, None)
    assert 0.5 <= record.seconds < 30


async def test_time_that_runs_out_before_the_first_answer_is_the_servers() -> None:
    async def hang(messages: object) -> str:
        await asyncio.sleep(60)
        return "4"

    record = await run_task(environment(twice, timeout=0.05), TASK, ScriptedClient(hang), retries=1)
    assert record.failure is not None
    assert (record.failure.kind, record.attempts) == ("infrastructure", 2)
    assert "had not answered once when the environment's 0.05 s were over" in record.failure.message


async def test_cancelling_reaches_the_caller() -> None:
    started = asyncio.Event()

    async def hang(messages: object) -> str:
        started.set()
        await asyncio.sleep(60)
        return "4"

    running = asyncio.create_task(run_task(environment(twice), TASK, ScriptedClient(hang)))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_group_runs_at_once_and_each_rollout_has_its_own_seed() -> None:
    together = asyncio.Barrier(3)

    async def script(messages: object) -> str:
        await together.wait()
        return "4"

    async def once(rollout: Rollout) -> str:
        await rollout.complete()
        return "completed"

    client = ScriptedClient(script)
    running = run_group(environment(once), TASK, client, size=3, sampling=Sampling(seed=0))
    records = await asyncio.wait_for(running, 30)
    assert [record.sample for record in records] == [0, 1, 2]
    assert [record.reward for record in records] == [1.0, 1.0, 1.0]
    expected = [derive_seed(derive_seed(0, "a", sample), 0) for sample in range(3)]
    assert sorted(r.sampling.seed or 0 for r in client.requests) == sorted(expected)
    with pytest.raises(ConfigError, match="group size 0; expected at least 1"):
        await run_group(environment(once), TASK, client, size=0)


async def test_an_error_of_the_user_stops_the_whole_group() -> None:
    cancelled = 0

    async def script(messages: list[Message]) -> str:
        nonlocal cancelled
        if len(client.requests) == 3:
            raise ConfigError("no such model")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return "4"

    client = ScriptedClient(script)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no such model"):
        await asyncio.wait_for(run_group(environment(twice), TASK, client, size=3), 30)
    assert cancelled == 2


async def test_group_rewards_are_part_of_a_group_and_of_a_single_rollout() -> None:
    def relative(trajectories: list[Trajectory]) -> list[float]:
        mean = sum(t.rewards["correct"] for t in trajectories) / len(trajectories)
        return [t.rewards["correct"] - mean for t in trajectories]

    async def once(rollout: Rollout) -> str:
        await rollout.complete()
        return "completed"

    compared = replace(environment(once), rubric=Rubric({correct: 0.0, relative: 1.0}).reweight({"correct": 1.0}))
    records = await run_group(compared, TASK, ScriptedClient(["4", "5"]), size=2)
    assert sorted(record.reward or 0.0 for record in records) == [-0.5, 1.5]
    alone = await run_task(compared, TASK, ScriptedClient(["4"]))
    assert alone.reward == 1.0


async def test_without_score_there_is_no_reward() -> None:
    async def once(rollout: Rollout) -> str:
        await rollout.complete()
        return "completed"

    record = await run_task(environment(once), TASK, ScriptedClient(["4"]), score=False)
    assert (record.reward, record.rewards, record.failure) == (None, {}, None)


async def test_harness_state_reaches_the_rubric_and_the_completion_the_record() -> None:
    async def counting(rollout: Rollout) -> str:
        rollout.state.guesses = 3
        await rollout.complete()
        assert rollout.last.logprobs == [-1.0]
        return "won"

    def guesses(state: object) -> float:
        return state.guesses  # type: ignore[attr-defined, no-any-return]

    counted = replace(environment(counting), rubric=Rubric({guesses: 0.0}))
    completion = Completion(assistant("4"), "stop", [1], [2], [-1.0], [0])
    record = await run_task(counted, TASK, ScriptedClient([completion]))
    assert (record.stop, record.metrics, record.reward) == ("won", {"guesses": 3.0}, 0.0)
    assert record.turns[0].completion is completion
