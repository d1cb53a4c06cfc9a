from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import Message, Task, UpswingError
from envs.render import ByteRenderer
from rl.algorithms import supervised
from rl.checkpoint import Checkpoints
from rl.data.pack import pack, segments
from rl.ops.logprobs import TokenScores
from rl.trainer.optimizer import adamw
from rl.trainer.sft import demonstrated, supervise
from rl.trainer.state import init_state
from rl.trainer.step import check_finite, make_apply
from rl.trainer.update import make_update
from rl.types import Batch

RENDERER = ByteRenderer()
TASK = Task.ask("a", "Hi")
GAME: list[Message] = [
    {"role": "assistant", "content": "x"},
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": "yz"},
]


def test_what_an_expert_says_is_what_is_learned() -> None:
    trajectory = demonstrated(TASK, GAME, RENDERER)
    (segment,) = segments(trajectory, 0.0)
    assert segment.tokens == [258, 72, 105, 256, 259, 120, 256, 258, 63, 256, 259, 121, 122, 256]
    learned = [token for token, trained in zip(segment.tokens, segment.mask, strict=True) if trained]
    assert learned == [120, 256, 121, 122, 256]
    assert trajectory.messages == [*TASK.prompt, *GAME] and trajectory.reward is None


def score(table: jax.Array, batch: Batch, temperature: jax.Array | float) -> TokenScores:
    """Every token given the one before it."""
    logprobs = jax.nn.log_softmax(table[jnp.roll(batch.tokens, 1, axis=1)] / temperature)
    chosen = jnp.take_along_axis(logprobs, batch.tokens[..., None], axis=2)[..., 0]
    return TokenScores(chosen, -(jnp.exp(logprobs) * logprobs).sum(axis=-1))


async def test_demonstrations_become_likelier_and_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    optimizer = adamw(lr=0.5, steps=6)
    apply = make_apply(make_update(score, supervised(), optimizer, 1), {**optimizer.hyper, "temperature": 1.0})
    batch = pack(segments(demonstrated(TASK, GAME, RENDERER), 0.0), 16, 1)
    asked: list[int] = []
    losses: list[float] = []

    async def batch_of(step: int) -> tuple[Batch, list[str]]:
        asked.append(step)
        return batch, ["a"]

    def on_step(step: int, metrics: dict[str, float]) -> None:
        assert step == len(losses) + 1
        losses.append(metrics["loss"])

    checkpoints = Checkpoints(tmp_path, every=2, keep=1)
    for steps in (4, 6):
        first = init_state(jnp.zeros((264, 264)), optimizer)
        state = await supervise(
            checkpoints.load(first) or first,
            steps=steps,
            batch_of=batch_of,
            apply=apply,
            checkpoints=checkpoints,
            on_step=on_step,
        )
    assert asked == [0, 1, 2, 3, 4, 5] and state.step == 6
    assert losses[0] == pytest.approx(np.log(264), rel=1e-6) and losses == sorted(losses, reverse=True)
    assert losses[-1] < 4.0 and checkpoints.steps() == [6]


@pytest.mark.parametrize(
    ("loss", "names", "text"),
    [
        (
            float("nan"),
            ["a", "a", "b"],
            r"update 7: the loss is not finite \(loss nan, gradient norm inf\); tasks: a, b\.",
        ),
        (
            0.5,
            [f"t{i}" for i in range(10)],
            r"update 7: the gradient is not .*; tasks: t0, .*, t7 and 2 more\. The weights",
        ),
    ],
)
def test_what_is_said_about_numbers_that_are_none(loss: float, names: list[str], text: str) -> None:
    check_finite(7, {"nonfinite": 0.0, "loss": loss, "grad_norm": 1.0}, names)
    with pytest.raises(UpswingError, match=text):
        check_finite(7, {"nonfinite": 1.0, "loss": loss, "grad_norm": float("inf")}, names)
