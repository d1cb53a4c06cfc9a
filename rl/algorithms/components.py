"""Several losses in one batch, each token with a weight of its own in each: the policy loss (`rl`), cross-entropy
(`ce`) and the divergence from the reference (`ref_kl`).

The weights of a token are said where segments are made (`Segment.components`), by environment: rollouts of one are
trained by RL while demonstrations of another are learned by cross-entropy. Each component has a denominator of its own,
over the whole batch and the tokens with a weight in it: how many the others have does not matter to it.
"""

from collections.abc import Callable, Collection
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool

from rl.algorithms.aggregate import aggregation
from rl.algorithms.base import Algorithm, TokenLoss
from rl.algorithms.compose import tokens_of
from rl.ops.kl import kl_estimate
from rl.ops.logprobs import TokenScores
from rl.types import Batch, Hyper

Component = Literal["rl", "ce", "ref_kl"]
COMPONENTS: tuple[Component, ...] = get_args(Component)

Loss = Callable[[TokenScores, Batch, Hyper], TokenLoss]


def with_components(algorithm: Algorithm, names: Collection[Component]) -> Algorithm:
    """An algorithm beside other losses: that of a batch is `sum(w_c * weights_c * loss_c)` over tokens and components.

    `w_c` are the numbers in `Batch.components`; `weights_c` are the algorithm's own for `rl`, those of the mean over
    the component's tokens for the others. With `rl` alone, and 1 everywhere, this is the algorithm to the last digit.
    Cross-entropy is that of the distribution that rollouts are drawn from: `sampling.temperature` divides its logits,
    too. The divergence is estimated by k3 on the tokens as they are.

    Metrics of a component are means over its own tokens; `share/*` says how many of all tokens these are.

    Args:
        algorithm: credit and the policy loss.
        names: the components that batches have.

    Raises:
        ValueError: for the name of no component, or a divergence from a reference where a teacher stands in its place.
    """
    if unknown := [name for name in names if name not in COMPONENTS]:
        raise ValueError(f"components are {', '.join(COMPONENTS)}; found {', '.join(map(repr, unknown))}")
    if "ref_kl" in names and algorithm.privilege is not None:
        raise ValueError("ref_kl is a divergence from a reference, and the policy's own teacher stands in its place")
    losses = {name: {"rl": algorithm.loss, "ce": _cross_entropy, "ref_kl": _divergence}[name] for name in names}
    mean = aggregation("token_mean", 1)

    def prepare(batch: Batch, hyper: Hyper) -> Batch:
        own = {name: _alone(batch, name) for name in names}
        ready = algorithm.prepare(own["rl"], hyper) if "rl" in own else batch
        own |= {"rl": ready} if "rl" in own else {}
        weights = {name: (algorithm.weights if name == "rl" else mean)(part) for name, part in own.items()}
        tokens = jnp.maximum(batch.mask.sum(), 1)
        shares = {f"share/{name}": part.mask.sum() / tokens for name, part in own.items()}
        return ready._replace(
            mask=batch.mask,
            rollouts=batch.rollouts,
            components={name: batch.components[name] * weight for name, weight in weights.items()},
            observed={name: jnp.full(batch.mask.shape, share) for name, share in shares.items()},
        )

    def loss(scores: TokenScores, batch: Batch, hyper: Hyper) -> TokenLoss:
        found = TokenLoss(jnp.zeros_like(scores.logprobs), dict(batch.observed))
        for name, each in losses.items():
            mask = belongs(batch, name)
            token = each(scores, batch._replace(mask=mask), hyper)
            share = jnp.maximum(batch.observed[f"share/{name}"], 1e-12)
            found = TokenLoss(
                found.loss + batch.components[name] * jnp.where(mask, token.loss, 0.0),
                {**found.metrics, **{key: jnp.where(mask, value, 0.0) / share for key, value in token.metrics.items()}},
                {**found.maxima, **{key: jnp.where(mask, value, 0.0) for key, value in token.maxima.items()}},
            )
        return found

    return algorithm._replace(
        loss=loss,
        weights=lambda batch: batch.mask.astype(jnp.float32),
        prepare=prepare,
        needs_reference=algorithm.needs_reference or "ref_kl" in names,
    )


def belongs(batch: Batch, name: Component) -> Bool[Array, "R L"]:
    """The trained tokens that have a weight in a component; without any components, all of them are `rl`."""
    if not batch.components and name == "rl":
        return batch.mask
    return batch.mask & (batch.components[name] > 0)


def _alone(batch: Batch, name: Component) -> Batch:
    """The whole batch, as if there were nothing but the tokens of one component."""
    mask = belongs(batch, name)  # of a rollout all tokens or none
    parts = jnp.where(mask, 1.0 / jnp.maximum(batch.rollout_tokens, 1).astype(jnp.float32), 0.0)
    return batch._replace(mask=mask, rollouts=jnp.round(parts.sum()).astype(jnp.int32))


def _cross_entropy(scores: TokenScores, batch: Batch, hyper: Hyper) -> TokenLoss:
    return TokenLoss(-scores.logprobs, {"cross_entropy": -scores.logprobs})


def _divergence(scores: TokenScores, batch: Batch, hyper: Hyper) -> TokenLoss:
    x = tokens_of(scores.logprobs, batch, "current")
    kl = kl_estimate(x.logprobs, x.reference_logprobs, "k3")
    return TokenLoss(kl, {"ref_kl": kl})
