"""A reward model that `rl sft preference=bradley_terry` made, as a function for a rubric."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import jax

from envs.types import Trajectory
from rl.checkpoint import load_critic
from rl.cli.build import make_policy
from rl.cli.model import model_of_run
from rl.config import HardwareConfig
from rl.data.pack import Segment, pack
from rl.trainer.critic import init_critic
from rl.trainer.reward import make_reward_score

RewardModel = Callable[[Trajectory], Awaitable[float]]

STEP = 64
"""Conversations are padded to a multiple of so many tokens: few lengths, few programs."""


def load_reward_model(run: str | Path, hardware: HardwareConfig | None = None) -> RewardModel:
    """The reward model of a run: `await reward_model(trajectory)` is what it thinks of the conversation.

        Rubric({load_reward_model("runs/judge"): 1.0})

    It reads messages in its own chat format, whoever wrote them; tools that a model was offered it is not shown. Scores
    have no zero and no unit: only differences between answers to one prompt were learned.

    Args:
        run: its directory.
        hardware: where it computes; by default on the CPU.

    Raises:
        UpswingError: when the run has no weights, or is no reward model.
    """
    policy = make_policy(model_of_run(Path(run)), hardware or HardwareConfig(), seed=0)
    head = load_critic(Path(run), init_critic("shared", policy.model.config.width, {}).params)
    score = jax.jit(make_reward_score(policy.model))

    def judged(trajectory: Trajectory) -> float:
        messages = trajectory.messages
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        ids = [*policy.renderer.prompt(messages[:last]), *policy.renderer.answer(messages[last])]
        batch = pack([Segment(ids, [True] * len(ids), [0.0] * len(ids))], -(-len(ids) // STEP) * STEP, 1)
        return float(score(policy.params, batch, 1.0, head).logprobs.sum())

    async def reward_model(trajectory: Trajectory) -> float:
        return await asyncio.to_thread(judged, trajectory)

    return reward_model
