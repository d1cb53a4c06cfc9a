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
    critic what it expects before the token. `squared_probs` is `sum p^2` over the vocabulary, where it is asked for; so
    are the likeliest tokens, and the log-probabilities of these, or of others that were named.
    """

    logprobs: Float[Array, "T"]
    entropy: Float[Array, "T"] | None
    expert_loads: Mapping[str, Float[Array, "layers E"]] = {}
    values: Float[Array, "T"] | None = None
    squared_probs: Float[Array, "T"] | None = None
    top_ids: Int[Array, "T K"] | None = None
    top_logprobs: Float[Array, "T K"] | None = None


def token_scores(
    hidden: Float[Array, "T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "T"],
    temperature: Float[Array, ""] | float = 1.0,
    *,
    chunk: int = 1024,
    squares: bool = False,
    top: int = 0,
    at: Int[Array, "T K"] | None = None,
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
        top: fill in `top_ids` and `top_logprobs` of so many tokens, the likeliest first.
        at: or `top_logprobs` of these tokens.
    """

    def score(x: jax.Array, y: jax.Array, named: jax.Array | None = None) -> TokenScores:
        logits = jnp.einsum("TD,VD->TV", x, head.astype(x.dtype), preferred_element_type=jnp.float32) / temperature
        largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
        exp = jnp.exp(logits - largest)
        total = exp.sum(axis=-1)
        log_total = jnp.log(total) + largest[:, 0]
        chosen = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        squared = (exp**2).sum(axis=-1) / total**2 if squares else None
        entropy = log_total - (exp * logits).sum(axis=-1) / total
        found = TokenScores(chosen - log_total, entropy, squared_probs=squared)
        if top:
            values, ids = jax.lax.top_k(logits, top)
            found = found._replace(top_ids=ids, top_logprobs=values - log_total[:, None])
        elif named is not None:
            values = jnp.take_along_axis(logits, named, axis=1)
            found = found._replace(top_logprobs=values - log_total[:, None])
        return found

    tokens = targets.shape[0]
    if tokens <= chunk:
        return score(hidden, targets, at)

    def chunked(values: jax.Array) -> jax.Array:
        padded = jnp.pad(values, ((0, -tokens % chunk), *((0, 0),) * (values.ndim - 1)))
        return padded.reshape(-1, chunk, *values.shape[1:])

    parts = jax.tree.map(chunked, (hidden, targets, at))
    _, scores = jax.lax.scan(lambda carry, part: (carry, jax.checkpoint(score)(*part)), None, parts)
    return jax.tree.map(lambda value: value.reshape(-1, *value.shape[2:])[:tokens], scores)
