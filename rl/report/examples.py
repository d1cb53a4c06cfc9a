"""The same held-out tasks before and after training, side by side."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from envs.types import Message, Trajectory
from rl.report.run import Run, value_of
from rl.report.text import count, escape, score

IMPROVED, WORSE, RANDOM = 4, 3, 4  # examples per group
LONG_PROMPT, LONG_ANSWER, LONG_RESULT = 1200, 2400, 600  # characters shown of one message


@dataclass(frozen=True, slots=True)
class Pair:
    """One held-out task: the rollout before training and the one after, and its values of the leading metric."""

    before: Trajectory | None
    after: Trajectory | None
    value_before: float | None
    value_after: float | None

    @property
    def change(self) -> tuple[float, float]:
        """The difference of the leading metric, then of the reward; zeros if either rollout has none."""
        if self.value_before is None or self.value_after is None or self.before is None or self.after is None:
            return 0.0, 0.0
        return self.value_after - self.value_before, (self.after.reward or 0.0) - (self.before.reward or 0.0)


def pair_up(before: Sequence[Trajectory], after: Sequence[Trajectory], metric: str) -> list[Pair]:
    """Match rollouts by task and sample, in the order they were evaluated."""
    first = {(trajectory.task.id, trajectory.sample): trajectory for trajectory in before}
    last = {(trajectory.task.id, trajectory.sample): trajectory for trajectory in after}
    pairs = []
    for key in {**first, **last}:
        old, new = first.get(key), last.get(key)
        values = (None if trajectory is None else value_of(trajectory, metric) for trajectory in (old, new))
        pairs.append(Pair(old, new, *values))
    return pairs


def choose(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """The most improved, the worst regressions, and a random few of the rest (always the same ones)."""
    worse = sorted((pair for pair in pairs if pair.change < (0.0, 0.0)), key=lambda pair: pair.change)[:WORSE]
    improved = sorted((pair for pair in pairs if pair.change > (0.0, 0.0)), key=lambda pair: pair.change, reverse=True)
    improved = improved[:IMPROVED]
    taken = {id(pair) for pair in worse + improved}
    rest = [pair for pair in pairs if id(pair) not in taken]
    drawn = random.Random(0).sample(rest, min(RANDOM, len(rest)))
    return {"most improved": improved, "got worse": worse, "drawn at random": drawn}


def examples_html(run: Run) -> str:
    """The whole section; empty if the run has no held-out rollouts."""
    pairs = pair_up(run.before, run.after, run.metric)
    if not pairs:
        return ""
    marks, system = _Marks.of(pairs), _shared_system(pairs)
    when = "before and after" if run.before and run.after else "before" if run.before else "after"
    parts = [f"<section><h2>Held-out rollouts, {when} training</h2>", _transitions(pairs, run.metric)]
    if system:
        text = _cut(system, LONG_RESULT)
        parts.append(
            f'<div class="shared"><small>every prompt begins with the system message</small><pre>{text}</pre></div>'
        )
    for title, group in choose(pairs).items():
        if group:
            parts.append(f"<h3>{title}</h3>")
            parts += [_example(pair, run.metric, marks, bool(system)) for pair in group]
    return "".join(parts) + "</section>"


@dataclass(frozen=True, slots=True)
class _Marks:
    """How values are coloured: only a metric that stays within 0 and 1 says what is right and wrong."""

    bounded: bool

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "_Marks":
        values = [v for pair in pairs for v in (pair.value_before, pair.value_after) if v is not None]
        return cls(bool(values) and all(0.0 <= value <= 1.0 for value in values))

    def __call__(self, value: float | None) -> str:
        if value is None or not self.bounded:
            return ""
        return "ok" if value >= 1.0 else "wrong" if value <= 0.0 else "partly"


def _transitions(pairs: Sequence[Pair], metric: str) -> str:
    """How many tasks changed sides, as a bar with a legend."""
    both = [(p.value_before, p.value_after) for p in pairs if p.value_before is not None and p.value_after is not None]
    if not both:
        return ""
    if all(value in (0.0, 1.0) for values in both for value in values):
        groups = {
            ("ok", "right both times"): sum(a == 1 and b == 1 for a, b in both),
            ("new", "newly right"): sum(a == 0 and b == 1 for a, b in both),
            ("lost", "newly wrong"): sum(a == 1 and b == 0 for a, b in both),
            ("wrong", "wrong both times"): sum(a == 0 and b == 0 for a, b in both),
        }
    else:
        groups = {
            ("new", "higher"): sum(b > a for a, b in both),
            ("wrong", "equal"): sum(a == b for a, b in both),
            ("lost", "lower"): sum(b < a for a, b in both),
        }
    bar = "".join(f'<i class="{style}" style="flex:{number}"></i>' for (style, _), number in groups.items() if number)
    legend = "".join(
        f'<li><s class="key box {style}"></s>{label} <b>{number:,}</b></li>'
        for (style, label), number in groups.items()
    )
    return (
        f'<p class="note">{count(len(both), "rollout")} of the same tasks and samples, by {escape(metric)}.</p>'
        f'<div class="shares">{bar}</div><ul class="legend">{legend}</ul>'
    )


def _shared_system(pairs: Sequence[Pair]) -> str:
    """The system message that all tasks begin with; empty if they differ, or if one has nothing else."""
    tasks = [shown.task for pair in pairs if (shown := pair.before or pair.after) is not None]
    firsts = {task.prompt[0]["content"] if len(task.prompt) > 1 else None for task in tasks}
    roles = {task.prompt[0]["role"] for task in tasks if task.prompt}
    return (firsts.pop() or "") if len(firsts) == 1 and roles == {"system"} else ""


def _example(pair: Pair, metric: str, marks: _Marks, system_known: bool) -> str:
    shown = pair.before or pair.after
    assert shown is not None
    sides = [
        _side(when, trajectory, value, metric, marks)
        for when, trajectory, value in (
            ("before", pair.before, pair.value_before),
            ("after", pair.after, pair.value_after),
        )
        if trajectory is not None
    ]
    answer, prompt = shown.task.answer, shown.task.prompt[1:] if system_known else shown.task.prompt
    expected = (
        ""
        if answer is None
        else f'<div class="expected"><small>answer</small> <code>{_cut(_plain(answer), 300)}</code></div>'
    )
    return (
        f'<article class="example"><header><span class="id">{escape(shown.task.id)}</span></header>'
        f'<div class="prompt">{_messages(prompt, LONG_PROMPT)}</div>{expected}'
        f'<div class="pair">{"".join(sides)}</div></article>'
    )


def _side(when: str, trajectory: Trajectory, value: float | None, metric: str, marks: _Marks) -> str:
    numbers = {metric: value, "reward": trajectory.reward}
    facts = [f"{escape(name)} <b>{score(number)}</b>" for name, number in numbers.items() if number is not None]
    if trajectory.stop not in ("", "completed"):
        facts.append(escape(trajectory.stop))
    said = _messages(_answered(trajectory), LONG_ANSWER) or '<p class="note">no answer</p>'
    failure = ""
    if trajectory.failure is not None:
        found = trajectory.failure
        cause = f"{found.kind}: {found.error}: {found.message}"
        failure = f'<p class="failure">not scored: {_cut(cause, 400)}</p>'
    return (
        f'<div class="side {marks(value)}"><div class="facts"><span>{when}</span><span>{" · ".join(facts)}</span></div>'
        f"{said}{failure}</div>"
    )


def _answered(trajectory: Trajectory) -> list[Message]:
    """The conversation after the task's own prompt."""
    messages, prompt = trajectory.messages, list(trajectory.task.prompt)
    return messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages


def _messages(messages: Sequence[Message], longest: int) -> str:
    """Messages with their roles; a single one needs no role."""
    parts = []
    for message in messages:
        role = f'<span class="role">{escape(message.get("role", "?"))}</span>' if len(messages) > 1 else ""
        most = LONG_RESULT if message.get("role") == "tool" else longest
        parts += [f"{role}<pre>{text}</pre>" for text in _contents(message, most)]
    return "".join(parts)


def _contents(message: Mapping[str, object], longest: int) -> Iterator[str]:
    content, calls = message.get("content"), message.get("tool_calls")
    if content or not calls:
        yield _cut("" if content is None else content, longest) or '<span class="none">(empty)</span>'
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function", {}) if isinstance(call, dict) else {}
        yield f'<span class="call">{escape(function.get("name"))}</span>({_cut(function.get("arguments"), longest)})'


def _plain(answer: object) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, default=str)


def _cut(value: object, longest: int) -> str:
    """Escaped text, shortened in the middle: what a model says first and last matters most."""
    text = str(value)
    if len(text) <= longest:
        return escape(text)
    head, tail = text[: longest * 2 // 3], text[-longest // 3 :]
    return (
        f'{escape(head)}<span class="none"> … {len(text) - len(head) - len(tail):,} characters … </span>{escape(tail)}'
    )
