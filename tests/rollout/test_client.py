"""Messages to tokens and back over several turns, with an engine that says what it is told."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import (
    Environment,
    Message,
    Rollout,
    Rubric,
    Sampling,
    Task,
    Taskset,
    Trajectory,
    multi_turn,
    run_task,
    tool_use,
)
from envs.render import ByteRenderer
from rl.data.pack import row_splits, segments
from rl.inference.engine import EngineError, Generation, TokenSampling
from rl.rollout.client import EngineClient, without_stop

RENDERER = ByteRenderer()
END = 256
TASK = Task.ask("a", "Hi")


@dataclass
class Parrot:
    """Says one list of tokens after the other, and remembers what it was asked."""

    says: Sequence[Sequence[int]]
    asked: list[tuple[list[int], TokenSampling]] = field(default_factory=list)
    context: int = 1 << 20

    async def generate(self, prompt_ids: Sequence[int], sampling: TokenSampling) -> Generation:
        ids = list(self.says[len(self.asked)])
        self.asked.append((list(prompt_ids), sampling))
        stop = next((text for text in sampling.stop if text in RENDERER.text(ids)), END if ids[-1] == END else None)
        logprobs = [-0.5] * len(ids)
        return Generation(ids, logprobs, logprobs, [3] * len(ids), "length" if stop is None else "stop", stop)


def text(words: str) -> list[int]:
    return [*words.encode(), END]


def environment(harness: object) -> Environment:
    return Environment(Taskset({"train": [TASK]}), harness, Rubric({}))  # type: ignore[arg-type]


async def converse(engine: Parrot, replies: Sequence[Sequence[Message]], **arguments: object) -> Trajectory:
    """One rollout in which the environment answers with these messages, turn by turn."""
    remaining = iter(replies)
    harness = multi_turn(lambda rollout: next(remaining, None), max_turns=len(replies) + 1)
    client = EngineClient(engine, RENDERER)  # type: ignore[arg-type]
    return await run_task(environment(harness), TASK, client, **arguments)  # type: ignore[arg-type]


async def test_what_a_completion_carries() -> None:
    engine = Parrot([text("Yo")])
    sampling = Sampling(0.5, 0.9, 7, 11, ("#",), seed=None)
    completion = await EngineClient(engine, RENDERER).complete([*TASK.prompt], (), sampling)  # type: ignore[arg-type]
    assert completion.message == {"role": "assistant", "content": "Yo"}
    assert completion.prompt_ids == [258, 72, 105, 256, 259]
    assert (completion.completion_ids, completion.logprobs, completion.versions) == (
        [89, 111, END],
        [-0.5] * 3,
        [3] * 3,
    )
    assert completion.finish_reason == "stop"
    assert completion.usage == {"prompt_tokens": 5, "completion_tokens": 3}
    ((prompt, asked),) = engine.asked
    assert prompt == completion.prompt_ids
    assert asked == TokenSampling(0.5, 0.9, 7, max_tokens=11, stop_ids=(END,), stop=("#",), seed=asked.seed)


async def test_seeds_are_handed_on_and_differ_where_none_is_given() -> None:
    engine = Parrot([text("a")] * 5)
    client = EngineClient(engine, RENDERER)  # type: ignore[arg-type]
    for seed in (5, None, None, None):
        await client.complete([*TASK.prompt], (), Sampling(seed=seed))
    seeds = [sampling.seed for _, sampling in engine.asked]
    assert seeds[0] == 5 and len(set(seeds)) == 4 and all(0 <= seed < 2**31 for seed in seeds)


MESSAGES = st.lists(st.tuples(st.sampled_from(["user", "tool"]), st.text()), min_size=0, max_size=3)


@given(st.lists(st.tuples(st.lists(st.integers(0, 263), min_size=1, max_size=12), MESSAGES), min_size=1, max_size=5))
async def test_a_conversation_only_grows_by_exact_tokens(turns: list[tuple[list[int], list[tuple[str, str]]]]) -> None:
    replies: list[list[Message]] = [[{"role": role, "content": said} for role, said in reply] for _, reply in turns]  # type: ignore[typeddict-item]
    engine = Parrot([*(ids for ids, _ in turns), [END]])
    trajectory = await converse(engine, replies)
    assert len(trajectory.turns) == len(turns) + 1 and trajectory.failure is None
    for before, reply, after in zip(trajectory.turns, replies, trajectory.turns[1:], strict=False):
        past = [*before.completion.prompt_ids, *before.completion.completion_ids]  # type: ignore[misc]
        ids = list(after.completion.prompt_ids)  # type: ignore[arg-type]
        added = [*([] if past[-1] == END else [END]), *RENDERER.prompt(reply)]
        assert ids == [*past, *added]
    (segment,) = segments(trajectory, 0.0)
    assert [t for t, m in zip(segment.tokens, segment.mask, strict=True) if m] == [
        i for said in engine.says for i in said
    ]


async def test_a_model_that_repeats_itself_is_continued_where_it_stands() -> None:
    replies: list[list[Message]] = [[{"role": "user", "content": "?"}]] * 3
    trajectory = await converse(Parrot([text("a")] * 4), replies)
    assert [len(t.completion.prompt_ids) for t in trajectory.turns] == [5, 11, 17, 23]  # type: ignore[arg-type]


async def test_words_put_into_the_models_mouth_are_part_of_the_next_prompt() -> None:
    added: list[Message] = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "?"}]
    trajectory = await converse(Parrot([text("a"), text("b")]), [added])
    first, second = (list(turn.completion.prompt_ids) for turn in trajectory.turns)  # type: ignore[arg-type]
    assert second == [*first, *text("a"), 259, *text("a"), 258, *text("?"), 259]


async def test_a_rewritten_conversation_is_rendered_anew() -> None:
    async def rewrite(rollout: Rollout) -> str:
        await rollout.complete()
        rollout.messages = [{"role": "user", "content": "Ho"}]
        await rollout.complete()
        return "completed"

    trajectory = await run_task(environment(rewrite), TASK, EngineClient(Parrot([text("a"), text("b")]), RENDERER))  # type: ignore[arg-type]
    assert trajectory.turns[1].completion.prompt_ids == [258, 72, 111, END, 259]
    assert [segment.tokens for segment in segments(trajectory, 0.0)] == [
        [258, 72, 105, END, 259, 97, END],
        [258, 72, 111, END, 259, 98, END],
    ]


async def test_tools_are_called_and_answered_in_tokens() -> None:
    async def add(a: int, b: int) -> int:
        """Adds.

        Args:
            a: one number.
            b: another.
        """
        return a + b

    call = text('<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>')
    engine = Parrot([call, text("5")])
    client = EngineClient(engine, RENDERER)  # type: ignore[arg-type]
    trajectory = await run_task(environment(tool_use([add], max_turns=3)), TASK, client)
    assert (trajectory.failure, trajectory.completion) == (None, "5")
    assert trajectory.turns[0].completion.finish_reason == "tool_calls"
    first, second = (ids for ids, _ in engine.asked)
    assert second == [*first, *call, 260, *text("5"), 259]
    assert bytes(first[1:200]).startswith(b'Tools:\n{"name": "add", "description": "Adds."')


async def test_a_stop_text_ends_the_message_but_not_its_tokens() -> None:
    engine = Parrot([[*b"1, 2\n\n"], text("3")])
    trajectory = await converse(engine, [[{"role": "user", "content": "on"}]], sampling=Sampling(stop=(",", "\n")))
    first, second = (turn.completion for turn in trajectory.turns)
    assert engine.asked[0][1].stop == (",", "\n")
    assert (first.message["content"], first.finish_reason) == ("1", "stop")
    assert first.completion_ids == [*b"1, 2\n\n"]
    assert second.prompt_ids == [258, 72, 105, END, 259, *b"1, 2\n\n", END, 258, *text("on"), 259]


@pytest.mark.parametrize(
    ("message", "left"),
    [
        ({"content": "a#b#c"}, {"content": "a"}),
        ({"content": None, "reasoning_content": "x#y"}, {"content": None, "reasoning_content": "x"}),
        ({"content": "a", "reasoning_content": "x"}, {"content": "a", "reasoning_content": "x"}),
    ],
)
def test_what_a_stop_text_leaves(message: Message, left: Message) -> None:
    assert without_stop(message, "#") == left


async def test_an_aborted_completion_is_the_engines_failure() -> None:
    class Aborted(Parrot):
        async def generate(self, prompt_ids: Sequence[int], sampling: TokenSampling) -> Generation:
            return Generation([72], [-0.5], [-0.5], [3], "abort")

    with pytest.raises(EngineError, match="a completion was aborted after 1 tokens"):
        await EngineClient(Aborted([]), RENDERER).complete([*TASK.prompt])  # type: ignore[arg-type]


class Forgetful(ByteRenderer):
    """A chat format that shows no model its own words again."""

    def extend(self, *_: object) -> None:  # type: ignore[override]
        return None


async def test_where_the_format_cannot_continue_the_row_splits() -> None:
    remaining = iter([[{"role": "user", "content": "?"}]])
    harness = multi_turn(lambda rollout: next(remaining, None), max_turns=2)
    client = EngineClient(Parrot([[*b"a"], text("b")]), Forgetful())  # type: ignore[arg-type]
    trajectory = await run_task(environment(harness), TASK, client)
    first, second = (turn.completion.prompt_ids for turn in trajectory.turns)
    assert second == [*first, *text("a"), 258, *text("?"), 259]  # type: ignore[misc]
    assert (len(segments(trajectory, 0.0)), row_splits(trajectory)) == (1, 0), "the same tokens are no split"
    trajectory.turns[1] = replace(
        trajectory.turns[1], completion=replace(trajectory.turns[1].completion, prompt_ids=[1])
    )
    assert (len(segments(trajectory, 0.0)), row_splits(trajectory)) == (2, 1)
