"""Log-probabilities of given tokens, without ever holding `[tokens, vocabulary]` in memory."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class TokenScores(NamedTuple):
    """Per token: the log-probability of the target, and the entropy of the distribution it is judged by (nats; None
    where no distribution was looked at).

    A model with experts tells beside them how many tokens it gave to each, `[layers, experts]` per stack of layers; a
    critic what it expects before the token. `squared_probs` is `sum p^2` over the vocabulary, where it is asked for.
    """

    logprobs: Float[Array, "T"]
    entropy: Float[Array, "T"] | None
    expert_loads: Mapping[str, Float[Array, "layers E"]] = {}
    values: Float[Array, "T"] | None = None
    squared_probs: Float[Array, "T"] | None = None


def token_scores(
    hidden: Float[Array, "T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "T"],
    temperature: Float[Array, ""] | float = 1.0,
    *,
    chunk: int = 1024,
    squares: bool = False,
) -> TokenScores:
    """Scores `targets` under `softmax(hidden @ head.T / temperature)`, in float32, `chunk` tokens at a time.

    Where there are several chunks, the backward pass recomputes the logits of each, so the peak is `chunk * V` floats
    in both directions. A chunk never depends on its neighbours: the result of a token is the same for every `chunk` up
    to float32 rounding.

    Args:
        hidden: outputs of the last norm.
        head: one row per vocabulary entry.
        targets: token ids in `[0, V)`.
        temperature: divides the logits; must be positive.
        chunk: tokens per step.
        squares: fill in `squared_probs`.
    """

    def score(x: jax.Array, y: jax.Array) -> TokenScores:
        logits = jnp.einsum("TD,VD->TV", x, head.astype(x.dtype), preferred_element_type=jnp.float32) / temperature
        top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
        exp = jnp.exp(logits - top)
        total = exp.sum(axis=-1)
        log_total = jnp.log(total) + top[:, 0]
        chosen = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        squared = (exp**2).sum(axis=-1) / total**2 if squares else None
        entropy = log_total - (exp * logits).sum(axis=-1) / total
        return TokenScores(chosen - log_total, entropy, squared_probs=squared)

    tokens = targets.shape[0]
    if tokens <= chunk:
        return score(hidden, targets)
    padding = -tokens % chunk
    x = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[1])
    y = jnp.pad(targets, (0, padding)).reshape(-1, chunk)
    _, scores = jax.lax.scan(lambda carry, xy: (carry, jax.checkpoint(score)(*xy)), None, (x, y))
    return jax.tree.map(lambda value: value.reshape(-1)[:tokens], scores)
