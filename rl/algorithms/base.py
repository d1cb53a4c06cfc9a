"""What an algorithm is: a value made of pure functions."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rl.ops.logprobs import TokenScores
from rl.types import Batch, Hyper


class Outcomes(NamedTuple):
    """How the rollouts of a step ended, on the host: `P` tasks, `G` rollouts of each.

    Attributes:
        rewards: of each rollout.
        valid: which rollouts have a reward; the others take no part.
        tokens: how many tokens each sampled.
        components: what each reward function gave, by name, before it was weighted.
    """

    rewards: Float[np.ndarray, "P G"]
    valid: Bool[np.ndarray, "P G"]
    tokens: Int[np.ndarray, "P G"]
    components: Mapping[str, Float[np.ndarray, "P G"]] = {}


Credit = Callable[[Outcomes], Float[np.ndarray, "P G"]]
"""From outcomes to an advantage per rollout."""


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
        credit: `credit(outcomes) -> advantages [P, G]`, on the host.
        loss: `loss(scores [R, L], batch, hyper) -> TokenLoss`; `hyper["version"]` is the policy version trained.
        weights: `weights(batch) -> [R, L]`: the loss of a batch is `sum(weights * token loss)`. Computed over the whole
            batch, so that how it is cut into micro-batches cannot matter.
        hyper: numeric settings and their values; `loss` finds them in `hyper` by name, traced.
        needs_reference: `loss` or `prepare` reads `batch.reference_logprobs`.
        needs_teacher: and the reference has to be another model.
        prepare: `prepare(batch, hyper) -> batch`, over the whole batch before it is cut.
    """

    credit: Credit
    loss: Callable[[TokenScores, Batch, Hyper], TokenLoss]
    weights: Callable[[Batch], jax.Array]
    hyper: Mapping[str, float]
    needs_reference: bool = False
    needs_teacher: bool = False
    prepare: Callable[[Batch, Hyper], Batch] = unprepared
