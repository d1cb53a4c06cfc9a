"""What a policy is told when it teaches itself: the same model, with something in its prompt that the student lacks."""

from typing import Literal, NamedTuple

from rl.types import Number

Source = Literal["demonstration", "best"]
Weights = Literal["current", "initial", "average"]


class Privilege(NamedTuple):
    """How a policy teaches itself.

    Attributes:
        source: what the teacher is shown: a demonstration of the environment, or the best rollout of the group.
        weights: the teacher's: those of the policy at the update, those that RL begins with, or a moving average of the
            policy's, which begins with these (`TrainState.average`).
        hint: what is added to the task, with `{shown}` in it.
    """

    source: Source
    weights: Weights
    hint: str


def privilege(
    *,
    privileged: Source = "demonstration",
    teacher_weights: Weights = "current",
    teacher_rate: Number = 0.05,
    hint: str = "A good answer is: {shown} Now answer yourself.",
) -> Privilege:
    """The privilege of these settings.

    Args:
        privileged: what the teacher is shown: demonstration, or best (of the group, to all that had a lower reward).
        teacher_weights: current: the policy's at each update; initial: those RL begins with; average: a moving average.
        teacher_rate: share of the way that the average goes to the policy's weights with each optimizer step.
        hint: what the task's last message says besides to the teacher, {shown} replaced.

    Raises:
        ValueError: for a hint without `{shown}`.
    """
    if "{shown}" not in hint:
        raise ValueError(f"hint is {hint!r}; expected a text with {{shown}} in it")
    return Privilege(privileged, teacher_weights, hint)
