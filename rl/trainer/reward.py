"""A reward model: a model with a critic's head, which says after its last token what an answer is worth."""

import jax
import jax.numpy as jnp

from rl.models.base import Model, Params
from rl.models.decoder import hidden_states
from rl.ops.logprobs import TokenScores
from rl.trainer.critic import judge
from rl.trainer.update import Score
from rl.types import Batch


def make_reward_score(model: Model, *, remat: bool = False) -> Score:
    """`score(params, batch, temperature, critic) -> TokenScores [R, L]`: at the last token of each segment the critic's
    word on all of it, in the place of that token's log-probability, and 0 at every other.

    So the losses over pairs, which add up the log-probabilities of an answer, are told its score. Nothing is asked
    about the vocabulary, and there is no entropy. Router loads of experts are left out: nothing balances them here.

    Args:
        model: the decoder.
        remat: recompute activations in the backward pass.
    """

    def score(
        params: Params, batch: Batch, temperature: jax.Array | float, critic: Params | None = None
    ) -> TokenScores:
        if critic is None:
            raise ValueError("a reward model judges with a critic's head, and there is none in the state")
        hidden, _ = hidden_states(model, params, batch.tokens, batch.positions, batch.segment_ids, remat=remat)
        following = jnp.pad(batch.segment_ids[:, 1:], ((0, 0), (0, 1)))
        last = (batch.segment_ids > 0) & (batch.segment_ids != following)
        return TokenScores(jnp.where(last, judge(critic, hidden), 0.0), None)

    return score
