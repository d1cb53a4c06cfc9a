"""Cross-entropy on given tokens: supervised fine-tuning, as one more algorithm."""

import numpy as np
from jaxtyping import Float

from rl.algorithms.aggregate import Aggregate, aggregation
from rl.algorithms.base import Algorithm, Outcomes, TokenLoss
from rl.ops.logprobs import TokenScores
from rl.types import Batch, Hyper


def supervised(aggregate: Aggregate = "token_mean", horizon: int = 1024) -> Algorithm:
    """Negative log-likelihood of the masked tokens; rewards and advantages play no part.

    Args:
        aggregate: "token_mean", "sequence_mean" or "constant".
        horizon: tokens per sequence that "constant" divides by.
    """
    return Algorithm(credit=_none, loss=_loss, weights=aggregation(aggregate, horizon), hyper={})


def _none(outcomes: Outcomes) -> Float[np.ndarray, "P G"]:
    return np.zeros_like(outcomes.rewards)


def _loss(scores: TokenScores, batch: Batch, hyper: Hyper) -> TokenLoss:
    return TokenLoss(-scores.logprobs, {})
