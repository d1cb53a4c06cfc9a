"""What a teacher reads that the student did not: another prompt, the same answer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import Completion, ConfigError, Environment, Rubric, Task, Taskset, Trajectory, Turn, single_turn
from envs.render import ByteRenderer
from rl.algorithms import ALGORITHMS, grpo
from rl.algorithms.components import with_components
from rl.algorithms.privileged import privilege
from rl.cli.build import make_algorithm
from rl.data.pack import Segment, lay, pack, segments, taught, unpack
from rl.models.base import Model, Params
from rl.rollout.privileged import instruct
from rl.trainer.reference import make_taught
from rl.trainer.update import make_score

RENDERER = ByteRenderer()
TASK = Task.ask("a", "ab", "ba")


def right(completion: str, answer: str) -> float:
    return float(completion == answer)


MIRROR = Environment(
    tasks=Taskset.from_function(lambda split: [TASK]),
    harness=single_turn(),
    rubric=Rubric({right: 1.0}),
    demonstrate=lambda task, sample: f"{task.answer}{sample}",
)


def rolled(said: str, sample: int, reward: float | None, prompt: list[int] | None = None) -> Trajectory:
    message: Any = {"role": "assistant", "content": said}
    ids, drawn = RENDERER.prompt(TASK.prompt) if prompt is None else prompt, RENDERER.answer(message)
    completion = Completion(message, "stop", ids, drawn, [-1.0] * len(drawn), [0] * len(drawn))
    return Trajectory(TASK, sample, [Turn(TASK.prompt, completion, True)], reward=reward)


def told(groups: list[list[Trajectory]], **settings: Any) -> list[str | None]:
    """What the teacher of each segment reads."""
    parts = [part for group in groups for t in group if t.reward is not None and t.sample >= 0 for part in segments(t)]
    instruct(parts, groups, privilege(**settings), MIRROR, RENDERER)
    return [RENDERER.text(part.taught) if part.taught else None for part in parts]


def test_a_demonstration_in_the_prompt() -> None:
    (read,) = told([[rolled("xy", 3, 0.0)]], hint="({shown})")
    assert read == "<|user|>ab\n\n(ba3)<|end|><|assistant|>xy<|end|>", "another demonstrator for each rollout"


def test_the_best_of_the_group_teaches_those_that_were_worse() -> None:
    group = [
        rolled("ba", 0, 1.0),
        rolled("xy", 1, 0.0),
        rolled("z", 2, None),
        rolled("ba!", -1, 2.0),
        rolled("ba", 4, 1.0),
    ]
    best, worse, as_good = told([group[:3] + group[4:]], privileged="best", hint="{shown}?")
    assert best is as_good is None and worse == "<|user|>ab\n\nba?<|end|><|assistant|>xy<|end|>"
    assert told([[rolled("ba", 0, 0.5), rolled("xy", 1, 0.5)]], privileged="best") == [None, None]


def test_a_prompt_with_more_than_the_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="the prompt of task 'a' is more than the task's messages"):
        told([[rolled("xy", 0, 0.0, [1, *RENDERER.prompt(TASK.prompt)])]])
    split = rolled("xy", 0, 0.0)
    split.turns.append(rolled("z", 0, 0.0).turns[0])
    with pytest.raises(ConfigError, match="whose turns do not continue each other's"):
        told([[split]])


def test_settings_that_say_nothing() -> None:
    with pytest.raises(ConfigError, match="argument 'privileged' is 'worst'"):
        make_algorithm({"name": "sdft", "privileged": "worst"})
    with pytest.raises(ValueError, match=r"expected a text with \{shown\} in it"):
        ALGORITHMS["sdft"](hint="Think.")
    with pytest.raises(ValueError, match="ref_kl is a divergence from a reference"):
        with_components(ALGORITHMS["sdft"](), ["rl", "ref_kl"])
    assert ALGORITHMS["sdpo"]().privilege == privilege(privileged="best") and grpo().privilege is None


PARTS = [
    Segment([5, 6, 7, 8, 9], [False, False, True, False, True], [0.0] * 5, taught=[1, 2, 3, 4, 7, 8, 9]),
    Segment([5, 7, 8], [False, True, True], [0.0] * 3),
    Segment([5, 6, 8, 8], [False, False, True, True], [0.0] * 4, taught=[3, 3, 3, 3, 3, 3, 8, 8]),
]


def test_the_teacher_reads_the_same_sampled_tokens() -> None:
    read = [taught(part) for part in PARTS]
    assert read[0].mask == [False, False, False, False, True, False, True] and read[1] is PARTS[1]
    assert [[t for t, m in zip(p.tokens, p.mask, strict=True) if m] for p in read] == [[7, 9], [7, 8], [8, 8]]


def test_what_is_laid_where_it_was_packed_is_found_again() -> None:
    numbers = [np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([5.0, 6.0])]
    batch = pack(PARTS, 8, 2)
    laid = lay(PARTS, 8, len(batch.tokens), numbers)
    assert ((laid != 0) == batch.mask).all()
    for found, number in zip(unpack(PARTS, 8, laid), numbers, strict=True):
        np.testing.assert_array_equal(found, number)


def test_the_teacher_s_word_is_that_of_its_own_prompt(model: Model, params: Params) -> None:
    """Wherever the segments lie; it needs rows of twice the length here."""
    score = make_score(model, top=2)
    batch = make_taught(score, 5, 2, 4, 1.0)(params, PARTS, pack(PARTS, 5, 4))
    filled = (batch.reference_logprobs, batch.top_ids, batch.top_logprobs)
    found = [unpack(PARTS, 5, np.asarray(values)) for values in filled]
    judged = jax.jit(score)
    for part, *told in zip(PARTS, *found, strict=True):
        alone = pack([taught(part)], 8, 1)
        scores, there = judged(params, alone, 1.0), jnp.asarray(alone.mask)
        for each, expected in zip(told, (scores.logprobs, scores.top_ids, scores.top_logprobs), strict=True):
            assert expected is not None
            np.testing.assert_allclose(each, expected[there], atol=1e-5)
    plain = judged(params, batch, 1.0).logprobs
    apart = np.abs(np.asarray(plain) - batch.reference_logprobs)[batch.mask]
    assert (apart > 1e-3).sum() >= 3 and (apart < 1e-5).sum() >= 2
