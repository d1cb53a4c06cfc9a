"""Prompts that tell a teacher more than the student knew."""

from collections.abc import Sequence

from envs.environment import Environment
from envs.errors import ConfigError
from envs.render import Renderer
from envs.types import GREEDY, Message, Task, Trajectory
from rl.algorithms.privileged import Privilege
from rl.data.pack import Segment

Groups = Sequence[Sequence[Trajectory]]


def instruct(
    parts: Sequence[Segment], groups: Groups, privilege: Privilege, environment: Environment, renderer: Renderer
) -> None:
    """Says of each segment what its teacher reads (`Segment.taught`); nothing else where there is nothing to show.

    Args:
        parts: all segments of the rollouts that have a reward, in order, as `rl.trainer.credit.credit` makes them.
        groups: these rollouts, and perhaps others.
        privilege: what is shown, and how.
        environment: that demonstrates.
        renderer: of the policy.

    Raises:
        ConfigError: when a rollout is several sequences of tokens, or its prompt is more than the messages of its task.
    """
    rolled = [(t, group) for group in groups for t in group if t.reward is not None and t.sample != GREEDY]
    firsts = [part for part in parts if part.starts_rollout]
    if len(firsts) != len(parts):
        raise ConfigError(
            "a teacher with a privileged prompt reads a rollout as one sequence of tokens, and here is one whose turns "
            "do not continue each other's (metric row_splits); take an environment of one turn, or a renderer that "
            "keeps all (model.renderer.retention=all)"
        )
    for part, (trajectory, group) in zip(firsts, rolled, strict=True):
        shown = _shown(trajectory, group, privilege, environment)
        if shown is None or True not in part.mask:
            continue
        start = part.mask.index(True)
        if part.tokens[:start] != renderer.prompt(trajectory.task.prompt):
            raise ConfigError(
                f"the prompt of task '{trajectory.task.id}' is more than the task's messages (tools, or what the "
                "harness adds), and a teacher would be shown less of it than the student was; self-distillation cannot "
                "be used here"
            )
        prompt = told(trajectory.task, privilege.hint.replace("{shown}", shown))
        part.taught = [*renderer.prompt(prompt), *part.tokens[start:]]


def told(task: Task, hint: str) -> list[Message]:
    """The prompt of a task, with a hint behind its last message."""
    *before, last = task.prompt
    return [*before, {**last, "content": f"{last['content'] or ''}\n\n{hint}"}]


def _shown(
    trajectory: Trajectory, group: Sequence[Trajectory], privilege: Privilege, environment: Environment
) -> str | None:
    if privilege.source == "demonstration":
        return _text(environment.demonstration(trajectory.task, max(trajectory.sample, 0)))
    best = max((t for t in group if t.reward is not None), key=lambda t: t.reward or 0.0)
    better = (best.reward or 0.0) > (trajectory.reward or 0.0)
    return _text(best.messages[len(trajectory.task.prompt) :]) if better else None


def _text(messages: Sequence[Message]) -> str:
    """What was said; of a conversation, with who said it."""
    if len(messages) == 1:
        return messages[0]["content"] or ""
    return "\n".join(f"{message['role']}: {message['content'] or ''}" for message in messages)
