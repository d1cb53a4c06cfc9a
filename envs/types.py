"""The records everything else passes around: messages, tasks, turns, trajectories.

All of them are plain data with a JSON round trip. Messages are the dictionaries of OpenAI's chat format, because every
client, template and log already speaks it.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict


class FunctionCall(TypedDict):
    """The function a model asked for. `arguments` is JSON text exactly as the model wrote it."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """One request of the model to run a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class Message(TypedDict):
    """One chat message. `reasoning_content` is what a model thought before it gave the answer that is `content`."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


ToolSchema = Mapping[str, Any]
"""A tool as OpenAI describes it: `{"type": "function", "function": {"name", "description", "parameters"}}`."""


@dataclass(frozen=True, slots=True)
class Task:
    """One problem.

    Attributes:
        id: unique within its taskset; everything random about the task derives from it.
        prompt: the messages a rollout starts from.
        answer: what a correct solution looks like (any JSON value); never shown to the model.
        info: anything else the harness or the rubric needs (JSON).
    """

    id: str
    prompt: tuple[Message, ...]
    answer: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def ask(cls, id: str, question: str, answer: Any = None, *, system: str | None = None, **info: Any) -> "Task":
        """A task whose prompt is one user message, after an optional system message."""
        prompt: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        prompt.append({"role": "user", "content": question})
        return cls(id, tuple(prompt), answer, info)

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "prompt": list(self.prompt), "answer": self.answer, "info": dict(self.info)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Task":
        return cls(data["id"], tuple(data["prompt"]), data.get("answer"), data.get("info") or {})


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: divides the logits; 0 means greedy.
        top_p: keep the smallest set of tokens with at least this probability; 1 keeps all.
        top_k: keep this many most likely tokens; 0 keeps all.
        max_tokens: the most tokens one completion may have.
        stop: strings that end a completion (they are not part of its text).
        seed: decides the randomness of a rollout; each of its turns derives its own from it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int | None = None


FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts a mixture of experts sent tokens through, in the layers that have experts, as its sampler saw it.

    Attributes:
        first: number of the first token it speaks of, counted from the beginning of the prompt.
        shape: `(tokens, layers, experts of a token)`.
        choices: the numbers of the experts in that order, each in as many bytes as the length says, the lowest first.
    """

    first: int
    shape: tuple[int, int, int]
    choices: bytes

    def since(self, token: int) -> "Routing":
        """What it says of this token of the sequence and those after it."""
        skipped = min(max(token - self.first, 0), self.shape[0])
        size = len(self.choices) // max(self.shape[0], 1)
        left = (self.shape[0] - skipped, *self.shape[1:])
        return Routing(self.first + skipped, left, self.choices[skipped * size :])

    def to_dict(self) -> dict[str, Any]:
        return {"first": self.first, "shape": list(self.shape), "choices": base64.b64encode(self.choices).decode()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Routing":
        tokens, layers, each = data["shape"]
        return cls(data["first"], (tokens, layers, each), base64.b64decode(data["choices"]))


@dataclass(frozen=True, slots=True)
class Completion:
    """What a client answers: the message and, from a token-level client, the tokens behind it.

    Attributes:
        message: the assistant's message.
        finish_reason: "stop", "length" (ran into `max_tokens` or the context) or "tool_calls".
        prompt_ids: the exact tokens the model saw, if known.
        completion_ids: the exact tokens it sampled, the end token included.
        logprobs: one per sampled token, under exactly the distribution it was sampled from.
        versions: the policy version each token was sampled with.
        usage: token counts as the server reports them (`prompt_tokens`, `completion_tokens`).
        routing: the experts that these tokens went through, where that was recorded. The last token of the completion
            was not read yet; of a prompt that continues the turn before, the tokens which that turn speaks of are left
            out.
    """

    message: Message
    finish_reason: FinishReason
    prompt_ids: Sequence[int] | None = None
    completion_ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None
    versions: Sequence[int] | None = None
    usage: Mapping[str, int] = field(default_factory=dict)
    routing: Routing | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One completion within a rollout, with what led to it.

    Attributes:
        messages: the messages added since the previous turn's completion; the whole prompt if `fresh`.
        completion: what the model answered.
        fresh: the conversation was begun or rewritten here: earlier turns are not part of this turn's prompt.
        seconds: how long the client took.
    """

    messages: tuple[Message, ...]
    completion: Completion
    fresh: bool
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        c = self.completion
        return {
            "messages": list(self.messages),
            "completion": c.message,
            "finish_reason": c.finish_reason,
            "prompt_ids": None if c.prompt_ids is None else list(c.prompt_ids),
            "completion_ids": None if c.completion_ids is None else list(c.completion_ids),
            "logprobs": None if c.logprobs is None else list(c.logprobs),
            "versions": None if c.versions is None else list(c.versions),
            "usage": dict(c.usage),
            "fresh": self.fresh,
            "seconds": self.seconds,
            **({} if c.routing is None else {"routing": c.routing.to_dict()}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Turn":
        completion = Completion(
            message=data["completion"],
            finish_reason=data["finish_reason"],
            prompt_ids=data.get("prompt_ids"),
            completion_ids=data.get("completion_ids"),
            logprobs=data.get("logprobs"),
            versions=data.get("versions"),
            usage=data.get("usage") or {},
            routing=Routing.from_dict(data["routing"]) if data.get("routing") else None,
        )
        return cls(tuple(data["messages"]), completion, data["fresh"], data.get("seconds", 0.0))


FailureKind = Literal["infrastructure", "harness", "reward"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rollout has no reward. Never the model's fault: what a model does wrong is scored.

    Attributes:
        kind: "infrastructure" (server, network, sandbox: retried), "harness" or "reward" (a bug in the environment).
        error: the exception's type.
        message: the exception's text.
        where: what was running, for example the name of the reward function.
        traceback: for bugs, the traceback.
    """

    kind: FailureKind
    error: str
    message: str
    where: str = ""
    traceback: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


GREEDY = -1
"""The `sample` of a rollout without chance, which stands beside its group as something to compare with."""


@dataclass(slots=True)
class Trajectory:
    """The record of one rollout.

    Attributes:
        task: the problem.
        sample: which of the task's rollouts this is (0 … G-1, or `GREEDY`).
        turns: every completion, in order.
        tail: messages after the last completion (for example the environment's last word).
        stop: why it ended: "completed", "max_turns", "length", "context_length", "timeout" or the harness's own word.
        reward: the weighted sum of `rewards`; None until scored, and forever if it failed.
        rewards: each reward function's raw value by name.
        metrics: observed values that carry no weight.
        turn_rewards: what part of `reward` which turn earned, one per turn; empty if nothing tells turns apart.
        failure: set if something other than the model failed.
        attempts: how often it was tried (infrastructure failures are retried).
        seconds: wall time of the last attempt.
        roles: the records of others who took part: another player, a simulated user, a candidate that was not chosen.
    """

    task: Task
    sample: int = 0
    turns: list[Turn] = field(default_factory=list)
    tail: tuple[Message, ...] = ()
    stop: str = ""
    reward: float | None = None
    rewards: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    turn_rewards: list[float] = field(default_factory=list)
    failure: Failure | None = None
    attempts: int = 1
    seconds: float = 0.0
    roles: dict[str, "Trajectory"] = field(default_factory=dict)

    @property
    def messages(self) -> list[Message]:
        """The conversation as it stood at the end (since it was last rewritten)."""
        messages: list[Message] = []
        for turn in self.turns:
            if turn.fresh:
                messages.clear()
            messages.extend(turn.messages)
            messages.append(turn.completion.message)
        if not self.turns:
            messages.extend(self.task.prompt)
        messages.extend(self.tail)
        return messages

    @property
    def completion(self) -> str:
        """The text of the model's last message; empty if it never answered."""
        return (self.turns[-1].completion.message["content"] or "") if self.turns else ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.task.to_dict(),
            "sample": self.sample,
            "turns": [turn.to_dict() for turn in self.turns],
            "tail": list(self.tail),
            "stop": self.stop,
            "reward": self.reward,
            "rewards": self.rewards,
            "metrics": self.metrics,
            "turn_rewards": self.turn_rewards,
            "failure": None if self.failure is None else self.failure.to_dict(),
            "attempts": self.attempts,
            "seconds": self.seconds,
            "roles": {name: role.to_dict() for name, role in self.roles.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Trajectory":
        fields = dict(data)
        fields["task"] = Task.from_dict(data["task"])
        fields["turns"] = [Turn.from_dict(turn) for turn in data["turns"]]
        fields["tail"] = tuple(data["tail"])
        fields["failure"] = None if data["failure"] is None else Failure(**data["failure"])
        fields["turn_rewards"] = list(data.get("turn_rewards") or ())
        fields["roles"] = {name: cls.from_dict(role) for name, role in (data.get("roles") or {}).items()}
        return cls(**fields)

    def to_json(self) -> str:
        """One line of JSON, in ASCII: it holds whatever a model wrote, lone surrogates too. Floats keep every bit."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Trajectory":
        return cls.from_dict(json.loads(text))
