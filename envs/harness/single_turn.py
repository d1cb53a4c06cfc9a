"""One question, one answer."""

from envs.environment import Harness
from envs.rollout import Rollout


def single_turn() -> Harness:
    """A harness that asks once. It stops with "length" if the answer was cut off, else "completed"."""

    async def harness(rollout: Rollout) -> str:
        await rollout.complete()
        return "length" if rollout.last.finish_reason == "length" else "completed"

    return harness
