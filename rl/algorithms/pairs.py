"""Learning from pairs of answers: the losses of `rl.algorithms.preference` as algorithms.

The loss of a pair looks at two whole answers, which may lie in different rows and micro-batches. So the batch is scored
first (`Algorithm.scores_first`), and the derivative by the log-probability of an answer becomes the weight of its
tokens: the update has the pair loss's value and gradient for one more forward pass, and nothing else knows about pairs.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rl.algorithms import preference
from rl.algorithms.aggregate import aggregation
from rl.algorithms.base import Algorithm, Critic, Outcomes, TokenLoss
from rl.algorithms.compose import settings_of
from rl.algorithms.preference import PerPair
from rl.algorithms.token_credit import critic_rate
from rl.ops.logprobs import TokenScores
from rl.types import Batch, Hyper, Number


class Answers(NamedTuple):
    """Both answers of up to `B` pairs, in the order of their numbers; number 0 is no pair.

    Attributes:
        chosen: log-probabilities, or margins over the reference, of the better answers; summed or per token.
        rejected: of the worse ones.
        chosen_tokens: how many tokens each has.
        rejected_tokens: how many tokens each has.
        there: both are in the batch.
    """

    chosen: PerPair
    rejected: PerPair
    chosen_tokens: PerPair
    rejected_tokens: PerPair
    there: Bool[Array, "B"]


def answers(batch: Batch, *, reference: bool, per_token: bool) -> Answers:
    """What the policy that the batch found says of the answers.

    Args:
        batch: scored, with pairs.
        reference: take off the log-probabilities of the reference.
        per_token: the mean over an answer's tokens in place of their sum.
    """
    assert batch.pairs is not None and batch.proximal_logprobs is not None
    logprobs = batch.proximal_logprobs - batch.reference_logprobs if reference else batch.proximal_logprobs
    number, most = jnp.abs(batch.pairs), batch.tokens.size // 2 + 1

    def of(side: Bool[Array, "R L"], values: Float[Array, "R L"]) -> PerPair:
        counted = jnp.where(side & batch.mask, values, 0.0)
        return jnp.zeros(most, values.dtype).at[number].add(counted)

    good, bad = batch.pairs > 0, batch.pairs < 0
    ones = jnp.ones_like(logprobs)
    sizes = of(good, ones), of(bad, ones)
    sums = of(good, logprobs), of(bad, logprobs)
    if per_token:
        sums = sums[0] / jnp.maximum(sizes[0], 1.0), sums[1] / jnp.maximum(sizes[1], 1.0)
    return Answers(*sums, *sizes, (sizes[0] > 0) & (sizes[1] > 0))


def of_pairs(loss: Callable[..., PerPair], *, reference: bool, per_token: bool, **numbers: float) -> Algorithm:
    """An algorithm whose loss is the mean of a pair loss.

    Args:
        loss: `loss(chosen, rejected, **numbers)`; one with an argument `kl` is told the mean margin, if positive.
        reference: its arguments are margins over the reference policy.
        per_token: they are means over tokens.
        numbers: of the loss; traced.
    """

    def prepare(batch: Batch, hyper: Hyper) -> Batch:
        found = answers(batch, reference=reference, per_token=per_token)
        count = jnp.maximum(found.there.sum(), 1).astype(found.chosen.dtype)
        given: dict[str, Any] = {name: hyper[name] for name in numbers}
        if "kl" in inspect.signature(loss).parameters:
            both = jnp.where(found.there, found.chosen + found.rejected, 0.0).sum() / (2.0 * count)
            given["kl"] = jnp.maximum(both, 0.0)

        def total(chosen: PerPair, rejected: PerPair) -> jax.Array:
            return jnp.where(found.there, loss(chosen, rejected, **given), 0.0).sum() / count

        value, slopes = jax.value_and_grad(total, argnums=(0, 1))(found.chosen, found.rejected)
        if per_token:
            sizes = found.chosen_tokens, found.rejected_tokens
            slopes = tuple(slope / jnp.maximum(size, 1.0) for slope, size in zip(slopes, sizes, strict=True))
        assert batch.pairs is not None
        number = jnp.abs(batch.pairs)
        slope = jnp.where(batch.pairs > 0, slopes[0][number], slopes[1][number])
        tokens = jnp.maximum(batch.mask.sum(), 1).astype(slope.dtype)  # the sum is of weights of 1 / tokens
        margins = jnp.where(found.there, found.chosen - found.rejected, 0.0)
        told = {
            "pairs/loss": value,
            "pairs/margin": margins.sum() / count,
            "pairs/accuracy": (margins > 0).sum().astype(slope.dtype) / count,
        }
        return batch._replace(
            advantages=jnp.where(batch.mask & (number > 0), -slope * tokens, 0.0),
            observed={name: jnp.full(batch.mask.shape, each) for name, each in told.items()},
        )

    return Algorithm(
        credit=_none,
        loss=_loss,
        weights=aggregation("token_mean", 1),
        hyper=numbers,
        needs_reference=reference,
        prepare=prepare,
        scores_first=True,
    )


def _loss(scores: TokenScores, batch: Batch, hyper: Hyper) -> TokenLoss:
    inside = jnp.where(batch.mask, scores.logprobs, 0.0)
    moved = inside - jax.lax.stop_gradient(inside)  # 0, and the gradient of the log-probability
    return TokenLoss(batch.observed["pairs/loss"] - batch.advantages * moved, batch.observed)


def _none(outcomes: Outcomes) -> Float[np.ndarray, "P G"]:
    return np.zeros_like(outcomes.rewards)


def kto_pair(
    chosen: PerPair,
    rejected: PerPair,
    kl: Float[Array, ""],
    *,
    beta: Number = 0.1,
    weight_good: Number = 1.0,
    weight_bad: Number = 1.0,
) -> PerPair:
    """KTO (arXiv:2402.01306) of both answers, each by itself. The divergence they are seen against is estimated by the
    mean margin of the batch, where the paper takes answers of other prompts.

    Args:
        beta: scale of the margins.
        weight_good: of chosen answers.
        weight_bad: of rejected ones.
    """
    shared = {"beta": beta, "weight_good": weight_good, "weight_bad": weight_bad}
    good = preference.kto(chosen, jnp.ones_like(chosen), kl, **shared)
    return good + preference.kto(rejected, jnp.zeros_like(rejected), kl, **shared)


def bradley_terry(*, margin: float = 0.0, critic_lr: float = 1.0) -> Algorithm:
    """A reward model (Bradley and Terry 1952; arXiv:2203.02155): a head on the model's layers scores whole answers, and
    the better one of a pair is to be scored higher.

    It is told scores in place of log-probabilities (`rl.trainer.reward.make_reward_score`).

    Args:
        margin: by which the better answer shall lead.
        critic_lr: the head's learning rate, in units of the model's.
    """
    scores = of_pairs(preference.bradley_terry, reference=False, per_token=False, margin=margin)
    head = Critic("shared", None, lambda lr, hyper: critic_rate(lr, critic_lr=hyper["critic_lr"]))
    return scores._replace(hyper={**scores.hyper, "critic_lr": critic_lr}, critic=head)


def _named(
    name: str, loss: Callable[..., PerPair], *, reference: bool = True, per_token: bool = False
) -> Callable[..., Algorithm]:
    """A factory with the numbers of a loss as its arguments."""
    defaults = {key: parameter.default for key, parameter in settings_of(loss).items()}

    def factory(**numbers: float) -> Algorithm:
        return of_pairs(loss, reference=reference, per_token=per_token, **{**defaults, **numbers})

    parameters = [p.replace(annotation=float) for p in settings_of(loss).values()]
    factory.__name__ = factory.__qualname__ = name
    factory.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    factory.__annotations__ = {p.name: float for p in parameters}
    factory.__doc__ = inspect.getdoc(loss)
    return factory


PREFERENCES: Mapping[str, Callable[..., Algorithm]] = {
    factory.__name__: factory
    for factory in (
        _named("dpo", preference.dpo),
        _named("ipo", preference.ipo, per_token=True),
        _named("kto", kto_pair),
        _named("orpo", preference.orpo, reference=False, per_token=True),
        _named("simpo", preference.simpo, reference=False, per_token=True),
        bradley_terry,
    )
}
"""By the name in a config."""
