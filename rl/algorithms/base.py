"""What an algorithm is: a value made of pure functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rl.algorithms.privileged import Privilege
from rl.ops.logprobs import TokenScores
from rl.types import Batch, Hyper


class Outcomes(NamedTuple):
    """How the rollouts of a step ended, on the host: `P` tasks, `G` rollouts of each.

    A rollout has at most `K` turns, in which it sampled at most `T` tokens together. What lies beyond its own is 0.

    Attributes:
        rewards: of each rollout.
        valid: which rollouts have a reward; the others take no part.
        tokens: how many tokens each sampled.
        components: what each reward function gave, by name, before it was weighted.
        turn_rewards: what part of its reward a rollout got for which turn; the rest came at its end.
        turn_tokens: how many tokens each turn sampled.
        environments: what each task is a task of.
        kept: what credit kept of the steps before (`Algorithm.keep`).
        greedy: reward of the greedy answer to each task, NaN where it has none; there if credit asks for it.
        per_token: what credit asks to be told about each sampled token, by name.
    """

    rewards: Float[np.ndarray, "P G"]
    valid: Bool[np.ndarray, "P G"]
    tokens: Int[np.ndarray, "P G"]
    components: Mapping[str, Float[np.ndarray, "P G"]] = {}
    turn_rewards: Float[np.ndarray, "P G K"] | None = None
    turn_tokens: Int[np.ndarray, "P G K"] | None = None
    environments: Sequence[str] = ()
    kept: Mapping[str, float] = {}
    greedy: Float[np.ndarray, "P"] | None = None
    per_token: Mapping[str, Float[np.ndarray, "P G T"]] = {}


Credit = Callable[[Outcomes], Float[np.ndarray, "P G"] | Float[np.ndarray, "P G T"]]
"""From outcomes to an advantage per rollout, or per sampled token."""

Ask = Literal["greedy", "values", "logprobs", "squared_probs", "behaviour_logprobs", "reference_logprobs"]
"""What credit may want to know besides rewards: how a greedy rollout of each task ends (`Outcomes.greedy`), or, about
each sampled token (`Outcomes.per_token`), what the critic says before it, its log-probability under the policy that is
trained, the one that sampled it or the reference, and `sum p^2` over the vocabulary."""

F = TypeVar("F", bound=Callable[..., object])


def asks(*names: Ask) -> Callable[[F], F]:
    """Says what a credit function wants to know besides rewards."""

    def mark(function: F) -> F:
        function.asks = frozenset(names)  # type: ignore[attr-defined]
        return function

    return mark


class Critic(NamedTuple):
    """How a critic is trained beside the policy.

    Attributes:
        kind: a head on the policy's own layers, or a model of its own.
        targets: `targets(outcomes) -> [P, G, T]`: what it should have said, on the host; None: nobody says, the loss
            alone teaches it.
        rate: `rate(lr, hyper)`: its learning rate, from the policy's.
    """

    kind: Literal["shared", "separate"]
    targets: Callable[[Outcomes], Float[np.ndarray, "P G T"]] | None
    rate: Callable[[jax.Array, Hyper], jax.Array]


class Tokens(NamedTuple):
    """What a policy loss or a correction looks at, per token. Outside the mask everything is 0.

    Attributes:
        logprobs: under the policy that is trained.
        old_logprobs: under the policy that the trust region is around; what the ratio divides by.
        behaviour_logprobs: under the policy that sampled.
        advantages: credit.
        mask: tokens that are trained on.
        segment_ids: equal ids in a row are one sequence; 0 is padding.
        reference_logprobs: under the reference or the teacher; 0 where no part asks for one.
        mismatch: log of the trainer's over the sampler's probability of the token, without gradient.
        ages: how many updates ago the token was sampled.
        chosen: tokens singled out over the whole batch.
        top_logprobs: of the teacher's likeliest tokens, under the policy that is trained; where a loss asks for them.
        teacher_top_logprobs: and under the teacher.
    """

    logprobs: Float[Array, "R L"]
    old_logprobs: Float[Array, "R L"]
    behaviour_logprobs: Float[Array, "R L"]
    advantages: Float[Array, "R L"]
    mask: Bool[Array, "R L"]
    segment_ids: Int[Array, "R L"]
    reference_logprobs: Float[Array, "R L"]
    mismatch: Float[Array, "R L"]
    ages: Float[Array, "R L"]
    chosen: Bool[Array, "R L"]
    top_logprobs: Float[Array, "R L K"] | None = None
    teacher_top_logprobs: Float[Array, "R L K"] | None = None


class TokenLoss(NamedTuple):
    """Per-token loss and, by name, per-token values to observe; only masked tokens of either are ever read.

    Attributes:
        loss: what is minimised.
        metrics: observed as their mean over tokens.
        maxima: observed as the largest of the batch; not negative.
    """

    loss: Float[Array, "R L"]
    metrics: Mapping[str, Float[Array, "R L"]]
    maxima: Mapping[str, Float[Array, "R L"]] = {}


Loss = Callable[..., TokenLoss]
"""A policy loss: `loss(tokens, **numbers)`."""
Correction = Callable[..., Float[Array, "R L"]]
"""What the policy loss of each token is multiplied with: `correction(tokens, **numbers)`."""


def unprepared(batch: Batch, hyper: Hyper) -> Batch:
    """The batch as it is."""
    return batch


class Algorithm(NamedTuple):
    """Credit assignment and a loss.

    Attributes:
        credit: `credit(outcomes) -> advantages [P, G]`, or `[P, G, T]` per sampled token, on the host.
        loss: `loss(scores [R, L], batch, hyper) -> TokenLoss`; `hyper["version"]` is the policy version trained.
        weights: `weights(batch) -> [R, L]`: the loss of a batch is `sum(weights * token loss)`. Computed over the whole
            batch, so that how it is cut into micro-batches cannot matter.
        hyper: numeric settings and their values; `loss` finds them in `hyper` by name, traced.
        needs_reference: `loss`, `prepare` or `credit` reads log-probabilities of the reference.
        needs_teacher: and the reference has to be another model.
        prepare: `prepare(batch, hyper) -> batch`, over the whole batch before it is cut.
        asks: what credit wants to know besides rewards.
        critic: who says what each token is worth, for `loss` and `credit`.
        keep: `keep(outcomes) -> kept`, by environment: what credit of the next step finds in `Outcomes.kept`.
        scores_first: `prepare` reads `batch.proximal_logprobs`.
        privilege: `loss` reads what the policy itself says of its tokens behind a prompt that tells more, in the place
            of the reference's log-probabilities.
        top: how many of the teacher's likeliest tokens `loss` reads, in each place.
    """

    credit: Credit
    loss: Callable[[TokenScores, Batch, Hyper], TokenLoss]
    weights: Callable[[Batch], jax.Array]
    hyper: Mapping[str, float]
    needs_reference: bool = False
    needs_teacher: bool = False
    prepare: Callable[[Batch, Hyper], Batch] = unprepared
    asks: frozenset[Ask] = frozenset()
    critic: Critic | None = None
    keep: Callable[[Outcomes], Mapping[str, float]] | None = None
    scores_first: bool = False
    privilege: Privilege | None = None
    top: int = 0
