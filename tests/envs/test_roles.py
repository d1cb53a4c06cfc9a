"""Rollouts with more than one who speaks: games, simulated users, several attempts, tournaments."""

from typing import Any

import pytest

from envs import (
    ConfigError,
    Environment,
    Rollout,
    Rubric,
    Sampling,
    ScriptedClient,
    Task,
    Taskset,
    Trajectory,
    best_of,
    game_score,
    majority,
    run_group,
    run_task,
    self_play,
    simulated_user,
    single_turn,
)
from envs.clients.scripted import tool_call
from envs.tournament import tournament
from rl.rollout.journal import read_rollouts, write_rollouts

TASK = Task.ask("a", "Say the higher number.", system="Be brief.")


class Higher:
    """Each of two says a number, then the higher one wins."""

    def __init__(self, task: Task) -> None:
        self.said: dict[str, int] = {}

    @property
    def turn(self) -> str | None:
        return next((role for role in ("left", "right") if role not in self.said), None)

    def observe(self, role: str) -> str:
        return f"You are {role}. {len(self.said)} said."

    def play(self, role: str, text: str) -> None:
        self.said[role] = int(text)

    def score(self, role: str) -> float:
        return float(self.said.get(role, -1) == max(self.said.values()))


def environment(harness: Any, *functions: Any) -> Environment:
    return Environment(Taskset({"train": [TASK]}), harness, Rubric(dict.fromkeys(functions, 1.0)))


async def test_every_role_has_a_record_and_a_group_sees_all_sides(tmp_path: Any) -> None:
    def number(messages: list[Any]) -> str:
        return "5" if "left" in messages[-1]["content"] else "3"

    harness = self_play(Higher, roles=["left", "right"], max_turns=4)
    client = ScriptedClient(number)
    first, second = await run_group(environment(harness, game_score), TASK, client, size=2, sampling=Sampling(seed=1))
    assert (first.stop, first.reward, second.reward) == ("completed", 1.0, 0.0)
    assert first.messages[-2:] == [
        {"role": "user", "content": "You are left. 0 said."},
        {"role": "assistant", "content": "5"},
    ]
    assert list(first.roles) == ["right"] and list(second.roles) == ["left"]
    right = first.roles["right"]
    assert (right.reward, right.completion, right.stop, len(right.turns)) == (0.0, "3", "completed", 1)
    assert right.messages[-2]["content"] == "You are right. 1 said."
    assert len({request.sampling.seed for request in client.requests}) == 4
    assert Trajectory.from_json(first.to_json()) == first
    write_rollouts(tmp_path / "rollouts.parquet", [first, second], 3)
    assert read_rollouts(tmp_path / "rollouts.parquet") == [first, second]


async def test_a_frozen_opponent_plays_its_role() -> None:
    frozen = ScriptedClient(["9"])
    harness = self_play(Higher, roles=["left", "right"], max_turns=4, others={"right": frozen})
    record = await run_task(environment(harness, game_score), TASK, ScriptedClient(["5"]), sample=1)
    assert (record.reward, record.roles["right"].reward, len(frozen.requests)) == (0.0, 1.0, 1)
    short = self_play(Higher, roles=["left", "right"], max_turns=1)
    assert (await run_task(environment(short, game_score), TASK, ScriptedClient(["5"]))).stop == "max_turns"
    with pytest.raises(ConfigError, match="some of the roles, not all"):
        self_play(Higher, roles=["left"], max_turns=1, others={"left": frozen})


async def test_a_simulated_user_speaks_until_it_is_done() -> None:
    def book(day: str) -> str:
        """Books a table."""
        return f"booked for {day}"

    task = Task("a", ({"role": "system", "content": "You take bookings."},))
    user = ScriptedClient(["A table, please.", "On Monday.", "[END]"])
    harness = simulated_user(lambda task: "You want a table on Monday.", max_turns=9, user=user, tools=[book])
    model = ScriptedClient(["Which day?", tool_call("book", '{"day": "Monday"}'), "Done."])
    record = await run_task(environment(harness), task, model)
    assert record.failure is None and record.stop == "completed"
    assert [message["content"] for message in record.messages] == [
        "You take bookings.", "A table, please.", "Which day?", "On Monday.", None, "booked for Monday", "Done.",
    ]  # fmt: skip
    said = record.roles["user"].messages
    assert said[0]["content"] is not None and "You want a table on Monday." in said[0]["content"]
    assert [(m["role"], m["content"]) for m in said[1:]] == [
        ("user", "Hello! How can I help you?"), ("assistant", "A table, please."), ("user", "Which day?"),
        ("assistant", "On Monday."), ("user", "Done."), ("assistant", "[END]"),
    ]  # fmt: skip
    assert all("Monday" not in str(m["content"]) for m in model.requests[0].messages)


async def test_the_user_of_a_task_with_a_question_has_asked_it() -> None:
    user = ScriptedClient(["[END]"])
    harness = simulated_user(lambda task: "", max_turns=1, user=user)
    record = await run_task(environment(harness), TASK, ScriptedClient(["7"]))
    assert record.stop == "completed" and len(record.turns) == 1
    assert [m["content"] for m in user.requests[0].messages][1:] == [
        "Hello! How can I help you?", "Say the higher number.", "7",
    ]  # fmt: skip


async def test_the_most_frequent_of_several_answers_is_taken() -> None:
    def seven(completion: str) -> float:
        return float(completion == "7")

    client = ScriptedClient(["3", "7", "7 "])
    record = await run_task(environment(best_of(single_turn(), 3, majority), seven), TASK, client)
    assert (record.stop, record.reward, record.completion) == ("completed", 1.0, "7")
    assert [role.completion for role in record.roles.values()] == ["3", "7", "7 "]
    assert [message["content"] for message in record.messages] == ["Be brief.", "Say the higher number.", "7"]

    async def last(attempts: Any) -> int:
        assert all(isinstance(attempt, Rollout) for attempt in attempts)
        return len(attempts) - 1

    chosen = await run_task(environment(best_of(single_turn(), 2, last)), TASK, ScriptedClient(["a", "b"]))
    assert chosen.completion == "b"


async def test_a_tournament_rewards_who_wins_against_the_others() -> None:
    async def longer(task: Task, one: Trajectory, two: Trajectory) -> float:
        a, b = len(one.completion), len(two.completion)
        return 0.5 if a == b else float(a > b)

    client = ScriptedClient(["aaa", "a", "aa", "aa"])
    group = await run_group(environment(single_turn(), tournament(longer)), TASK, client, size=4)
    assert [record.rewards for record in group] == [
        {"win_rate": 1.0}, {"win_rate": 0.0}, {"win_rate": 0.5}, {"win_rate": 0.5},
    ]  # fmt: skip

    async def first(task: Task, one: Trajectory, two: Trajectory) -> float:
        return 1.0

    rate = tournament(first)  # a judge that looks at the place only moves nobody
    assert await rate(TASK, [Trajectory(TASK)] * 3) == [0.5, 0.5, 0.5]
    assert await tournament(first, both_ways=False)(TASK, [Trajectory(TASK)] * 3) == [1.0, 0.5, 0.0]
    assert await rate(TASK, [Trajectory(TASK)]) == [0.5]


async def test_two_roles_have_two_names() -> None:
    rollout = Rollout(TASK, ScriptedClient([]))
    rollout.role("left")
    with pytest.raises(ConfigError, match="two roles of one rollout are called 'left'"):
        rollout.role("left")
