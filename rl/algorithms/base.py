"""What an algorithm is: a value made of pure functions."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from rl.ops.logprobs import TokenScores
from rl.types import Batch, Hyper


class TokenLoss(NamedTuple):
    """Per-token loss `[R, L]`, and per-token values to observe by name; only masked tokens of either are ever read."""

    loss: Float[Array, "R L"]
    metrics: Mapping[str, Float[Array, "R L"]]


class Algorithm(NamedTuple):
    """Credit assignment and a loss.

    Attributes:
        credit: `credit(rewards [P, G], valid [P, G]) -> advantages [P, G]`, on the host.
        loss: `loss(scores [R, L], batch, hyper) -> TokenLoss`.
        weights: `weights(batch) -> [R, L]`: the loss of a batch is `sum(weights * token loss)`. Computed over the whole
            batch, so that how it is cut into micro-batches cannot matter.
        hyper: numeric settings and their values; `loss` finds them in `hyper` by name, traced.
        needs_reference: `loss` reads `batch.reference_logprobs`.
    """

    credit: Callable[[Float[np.ndarray, "P G"], Bool[np.ndarray, "P G"]], Float[np.ndarray, "P G"]]
    loss: Callable[[TokenScores, Batch, Hyper], TokenLoss]
    weights: Callable[[Batch], jax.Array]
    hyper: Mapping[str, float]
    needs_reference: bool = False
