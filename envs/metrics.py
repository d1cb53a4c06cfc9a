"""Metrics that any environment may watch: `env.rubric.metrics=[turns]`, or in a rubric at weight 0."""

from collections.abc import Mapping, Sequence

from envs.types import Trajectory


def turns(trajectory: Trajectory) -> float:
    """Completions."""
    return float(len(trajectory.turns))


def completion_tokens(trajectory: Trajectory) -> float:
    """Tokens the model sampled: counted where the client gives tokens, else as the server says (0 if it does not)."""
    return float(
        sum(_tokens(t.completion.completion_ids, t.completion.usage, "completion_tokens") for t in trajectory.turns)
    )


def prompt_tokens(trajectory: Trajectory) -> float:
    """Tokens the model read, those of every turn's whole prompt together."""
    return float(sum(_tokens(t.completion.prompt_ids, t.completion.usage, "prompt_tokens") for t in trajectory.turns))


def tool_calls(trajectory: Trajectory) -> float:
    """Tools the model called."""
    return float(sum(len(turn.completion.message.get("tool_calls") or ()) for turn in trajectory.turns))


def cut_off(trajectory: Trajectory) -> float:
    """1 if a completion ran into its limit of tokens."""
    return float(any(turn.completion.finish_reason == "length" for turn in trajectory.turns))


def characters(completion: str) -> float:
    """Length of the last completion."""
    return float(len(completion))


def _tokens(ids: Sequence[int] | None, usage: Mapping[str, int], name: str) -> int:
    if ids is not None:
        return len(ids)
    return usage.get(name, 0)


METRICS = {f.__name__: f for f in (turns, completion_tokens, prompt_tokens, tool_calls, cut_off, characters)}
"""By the name that a config gives."""
