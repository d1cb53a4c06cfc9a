"""An expert's words, played through the harness."""

import pytest

from envs import (
    Environment,
    Message,
    Rollout,
    Rubric,
    ScriptedClient,
    Task,
    Taskset,
    UpswingError,
    load_environment,
    multi_turn,
    run_task,
)
from envs.render import ByteRenderer
from rl.data.pack import segments
from rl.rollout.demonstrations import demonstration

RENDERER = ByteRenderer()


async def test_a_policy_meets_the_same_prompts_tools_and_results() -> None:
    environment = load_environment("warehouse")
    task = environment.tasks[0]
    said = [m for m in environment.demonstration(task) if m["role"] == "assistant"]
    client = ScriptedClient(said)
    await run_task(environment, task, client)
    shown = await demonstration(environment, task, RENDERER)
    (segment,) = segments(shown)
    first, last = client.requests[0], client.requests[-1]
    begun = RENDERER.prompt(first.messages, first.tools)
    assert first.tools and segment.tokens[: len(begun)] == begun
    assert shown.turns[-1].completion.prompt_ids == RENDERER.prompt(last.messages, last.tools)
    learned = [token for token, trained in zip(segment.tokens, segment.mask, strict=True) if trained]
    assert learned == [token for message in said for token in RENDERER.answer(message)]
    assert shown.reward is None


async def test_only_the_learners_side_of_a_game_is_learned() -> None:
    environment = load_environment("nim", opponent="self")
    task = environment.tasks[0]
    said = [m["content"] for m in environment.demonstration(task) if m["role"] == "assistant"]
    shown = await demonstration(environment, task, RENDERER)
    assert len(said) > 2 and [turn.completion.message["content"] for turn in shown.turns] == said[::2]


def asks(count: int) -> Environment:
    """An environment that asks `count` times, with an expert who has two answers."""

    async def more(rollout: Rollout) -> list[Message]:
        return [{"role": "user", "content": f"and {len(rollout.trajectory.turns)}?"}]

    tasks = Taskset({"train": [Task.ask("a", "0?")]})
    said: list[Message] = [{"role": "assistant", "content": text} for text in ("x", "yz")]
    return Environment(tasks, multi_turn(more, max_turns=count), Rubric({}), demonstrate=lambda task, sample: said)


async def test_where_more_is_asked_than_was_shown_it_is_cut_off() -> None:
    shown = await demonstration(asks(4), asks(4).tasks[0], RENDERER)
    (segment,) = segments(shown)
    assert RENDERER.text(segment.tokens).endswith("<|user|>and 1?<|end|><|assistant|>yz<|end|>")
    assert [turn.completion.message["content"] for turn in shown.turns] == ["x", "yz"]


async def test_one_that_cannot_be_played_is_explained() -> None:
    async def broken(rollout: Rollout) -> str:
        await rollout.complete()
        raise KeyError("lid")

    environment = Environment(asks(1).tasks, broken, Rubric({}), demonstrate=lambda task, sample: "x")
    with pytest.raises(UpswingError, match="demonstration 3 of task 'a' cannot be played: harness raised KeyError"):
        await demonstration(environment, environment.tasks[0], RENDERER, sample=3)
