"""Rollouts drawn: many as a table, one as the conversation it is."""

import statistics
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from envs.types import Message, Turn
from rl.report.text import printable, score
from rl.view.rows import Row

ROLES = {"system": "dim", "user": "cyan", "assistant": "green", "tool": "magenta"}


def table(rows: Sequence[Row], chosen: int | None = None) -> Table:
    """Rows as a table; the chosen one (by its place in `rows`) is marked."""
    drawn = Table(header_style="bold", border_style="dim", box=None, expand=True, padding=(0, 1))
    for name in ("#", "reward", "turns", "tokens"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for name in ("stop", "task"):
        drawn.add_column(name, no_wrap=True)
    drawn.add_column("last words", no_wrap=True, ratio=1, overflow="ellipsis")
    for place, row in enumerate(rows):
        t = row.trajectory
        reward = Text(score(t.reward), style=_shade(t.reward))
        ended = Text("failed", style="red") if t.failure is not None else Text(printable(t.stop))
        words = t.completion if t.failure is None else f"{t.failure.error}: {t.failure.message}"
        numbers = (str(row.number), reward, str(len(t.turns)), f"{row.tokens:,}")
        task = f"{t.task.id}·{t.sample}" if t.sample else t.task.id
        last = Text(printable(" ".join(words[:400].split())))
        drawn.add_row(*numbers, ended, Text(printable(task)), last, style="reverse" if place == chosen else "")
    return drawn


def rollout(row: Row, *, tokens: bool = False) -> RenderableType:
    """One rollout: scores, conversation turn by turn, failure.

    Args:
        row: which.
        tokens: with every sampled token's id and log-probability.
    """
    t = row.trajectory
    head = Text.assemble(
        (f"#{row.number} ", "bold"), printable(f"{t.task.id}, sample {t.sample}"), (f"   {row.where}", "dim")
    )
    scores = {"reward": t.reward, **t.rewards}
    parts: list[RenderableType] = [head, _scores(scores, "bold"), _scores(t.metrics, "dim")]
    parts.append(Text(f"stop {printable(t.stop) or '–'}, {t.seconds:.2f} s, attempts {t.attempts}", style="dim"))
    if t.task.answer is not None:
        parts.append(Text.assemble(("answer ", "dim"), printable(str(t.task.answer))))
    for number, turn in enumerate(t.turns, start=1):
        again = " (conversation begun or rewritten)" if turn.fresh and number > 1 else ""
        parts.append(Rule(f"turn {number}{again}", style="dim", align="left"))
        parts += [_message(message) for message in turn.messages]
        parts.append(_message(turn.completion.message))
        parts.append(Text(_facts(turn), style="dim"))
        if tokens:
            parts.append(_tokens(turn))
    parts += [_message(message) for message in t.tail]
    if t.failure is not None:
        parts.append(Rule("failure", style="red", align="left"))
        f = t.failure
        parts.append(
            Text(printable(f"{f.kind}, {f.where}: {f.error}: {f.message}\n{f.traceback}").rstrip(), style="red")
        )
    return Group(*parts)


def _scores(values: dict[str, float] | dict[str, float | None], style: str) -> Text:
    return Text("  ".join(f"{name} {score(value)}" for name, value in values.items()), style=style)


def _message(message: Message) -> Text:
    text = Text.assemble((f"{message['role']} ", f"bold {ROLES[message['role']]}"))
    if thought := message.get("reasoning_content"):
        text.append(printable(thought) + "\n", style="dim italic")
    text.append(printable(message["content"] or ""))
    for call in message.get("tool_calls") or ():
        text.append(printable(f"\n  → {call['function']['name']}({call['function']['arguments']})"), style="yellow")
    return text


def _facts(turn: Turn) -> str:
    """Tokens, log-probabilities and versions of a turn in a line."""
    c = turn.completion
    parts = [f"{c.finish_reason}, {turn.seconds:.2f} s"]
    read, sampled = c.usage.get("prompt_tokens"), c.usage.get("completion_tokens")
    read = len(c.prompt_ids) if c.prompt_ids is not None else read
    sampled = len(c.completion_ids) if c.completion_ids is not None else sampled
    parts += [f"{read:,} tokens read"] if read is not None else []
    parts += [f"{sampled:,} sampled"] if sampled is not None else []
    if c.logprobs:
        parts.append(f"log-probability mean {statistics.fmean(c.logprobs):.3f}, least {min(c.logprobs):.3f}")
    if c.versions:
        first, last = min(c.versions), max(c.versions)
        parts.append(f"policy version {first}" if first == last else f"policy versions {first} to {last}")
    return ", ".join(parts)


def _tokens(turn: Turn) -> Text:
    c = turn.completion
    if c.completion_ids is None:
        return Text("the client gave no tokens", style="dim")
    text = Text()
    for i, token in enumerate(c.completion_ids):
        logprob = None if c.logprobs is None else c.logprobs[i]
        shown = f"{token} " if logprob is None else f"{token}:{logprob:.2f} "
        text.append(shown, style="" if logprob is None or logprob > -1 else "yellow" if logprob > -4 else "bold red")
    return text


def _shade(reward: float | None) -> str:
    return "red" if reward is None else "green" if reward >= 1 else "" if reward > 0 else "yellow"
