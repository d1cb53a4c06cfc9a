"""The one way a `TrainState` changes: a compiled, pure `update(state, batch, hyper) -> (state, metrics)`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rl.algorithms.base import Algorithm
from rl.algorithms.components import belongs
from rl.models.base import Model, Params
from rl.models.decoder import hidden_states
from rl.models.lora import join
from rl.models.moe import MoeConfig, balance, loads, max_load
from rl.ops.logprobs import TokenScores, token_scores
from rl.ops.masked import masked_sum
from rl.trainer.critic import explained_variance, improve, judge, whole
from rl.trainer.optimizer import Optimizer
from rl.trainer.state import TrainState
from rl.types import Batch, Hyper, Number

Metrics = dict[str, jax.Array]
Update = Callable[[TrainState, Batch, Hyper, Params | None], tuple[TrainState, Metrics]]
"""`update(state, batch, hyper, frozen=None)`; `frozen` is what `rl.models.lora.split` leaves beside an adapter."""
Score = Callable[..., TokenScores]
"""`score(params, batch, temperature[, critic])`."""


class Observed(NamedTuple):
    """What micro-batches tell besides loss and gradient.

    Attributes:
        sums: of every metric over tokens.
        maxima: the largest of what is observed so.
        expert_loads: tokens that experts were given.
    """

    sums: Metrics
    maxima: Metrics
    expert_loads: Mapping[str, jax.Array]


def make_score(model: Model, *, remat: bool = False, chunk: int = 1024, squares: bool = False, top: int = 0) -> Score:
    """`score(params, batch, temperature) -> TokenScores [R, L]`: every token given those before it in its segment.

    The first column has nothing before it and scores 0. With a critic (from `rl.trainer.critic.whole`) as a fourth
    argument there are `values`, too; with `squares`, `squared_probs`; with `top`, the likeliest tokens; without, where
    the batch has those of a teacher (`Batch.top_ids`), `top_logprobs` of these. Tokens go through the experts that the
    batch names; in a critic's own layers, through those it chooses.
    """

    def states(params: Params, batch: Batch, experts: jax.Array | None = None) -> tuple[jax.Array, Any]:
        return hidden_states(model, params, batch.tokens, batch.positions, batch.segment_ids, experts, remat=remat)

    def score(
        params: Params, batch: Batch, temperature: jax.Array | float, critic: Params | None = None
    ) -> TokenScores:
        hidden, observed = states(params, batch, batch.experts)
        R, L, D = hidden.shape
        before = hidden[:, :-1].reshape(R * (L - 1), D)
        targets = batch.tokens[:, 1:].reshape(-1)
        at = None if batch.top_ids is None or top else batch.top_ids[:, 1:].reshape(len(targets), -1)
        scores = token_scores(
            before, model.head(params), targets, temperature, chunk=chunk, squares=squares, top=top, at=at
        )
        if critic is not None:
            seen = states(critic["trunk"], batch)[0][:, :-1].reshape(before.shape) if "trunk" in critic else before
            scores = scores._replace(values=judge(critic, seen))
        scores = jax.tree.map(lambda value: _after_first(value.reshape(R, L - 1, *value.shape[1:])), scores)
        if isinstance(model.config, MoeConfig):
            scores = scores._replace(expert_loads=loads(observed, batch.segment_ids, model.config.experts))
        return scores

    return score


def _nearer(average: Params, params: Params, rate: Number) -> Params:
    """The moving average, a share of the way nearer."""
    return jax.tree.map(lambda a, p: (a + rate * (p - a)).astype(a.dtype), average, params)


def _after_first(values: jax.Array) -> jax.Array:
    """`[R, L - 1, …]` behind a first column of zeros."""
    return jnp.pad(values, ((0, 0), (1, 0), *((0, 0),) * (values.ndim - 2)))


def make_update(
    score: Score,
    algorithm: Algorithm,
    optimizer: Optimizer,
    microbatch_rows: int,
    constrain: Callable[[Batch], Batch] = lambda batch: batch,
) -> Update:
    """Builds the update of an algorithm; the caller compiles it (`jax.jit(update, donate_argnums=0)`).

    Rows are processed `microbatch_rows` at a time; trailing micro-batches that hold only padding cost nothing. Weights
    come from the whole batch, so loss and gradient do not depend on the cut. A loss or gradient that is not finite
    leaves the state as it was, inside the program (the donated input is gone), and reports `nonfinite = 1`.

    A critic in the state learns from the same loss, by an optimizer and a bound on its gradient of its own.

    A moving average of the parameters in the state follows them by `hyper["teacher_rate"]` of the way.

    A model with experts also reports `moe/max_load`, and those of its routers' biases that balance experts move by
    `hyper["expert_bias_rate"]`, unless they are frozen.

    Args:
        score: from `make_score`.
        algorithm: loss and weights.
        optimizer: gradient transformation and schedule.
        microbatch_rows: divides the batch's number of rows.
        constrain: pins each micro-batch to the mesh.
    """

    def microbatch_loss(
        params: Params, critic: Params | None, batch: Batch, weights: jax.Array, hyper: Hyper
    ) -> tuple[jax.Array, Observed]:
        judged = () if critic is None else (critic,)
        scores = score(params, batch, hyper["temperature"], *judged)
        token = algorithm.loss(scores, batch, hyper)
        metrics, maxima = jax.lax.stop_gradient((token.metrics, token.maxima))
        if scores.entropy is not None:
            metrics = {"entropy": jax.lax.stop_gradient(scores.entropy), **metrics}
        sums = {name: masked_sum(value, batch.mask) for name, value in metrics.items()}
        largest = {name: jnp.where(batch.mask, value, 0.0).max() for name, value in maxima.items()}
        return masked_sum(token.loss * weights, batch.mask), Observed(sums, largest, scores.expert_loads)

    def update(
        state: TrainState, batch: Batch, hyper: Hyper, frozen: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        def loss_of(trained: tuple[Params, Params | None], *rest: Any) -> tuple[jax.Array, Observed]:
            policy = join(trained[0], frozen)
            critic = None if trained[1] is None else whole(trained[1], policy, frozen)
            return microbatch_loss(policy, critic, *rest)

        critic = state.critic
        hyper = {**hyper, "version": state.step}
        batch = algorithm.prepare(batch, hyper)
        loss, (sums, maxima, expert_loads), (grads, critic_grads) = _accumulate(
            jax.value_and_grad(loss_of, has_aux=True),
            (state.params, None if critic is None else critic.params),
            batch,
            algorithm.weights(batch),
            hyper,
            microbatch_rows,
            constrain,
        )
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        scale = jnp.minimum(1.0, hyper["max_grad_norm"] / jnp.maximum(grad_norm, 1e-12))
        lr = optimizer.lr(state.step, hyper)
        # optax mixes weak and strong types inside Adam; its arithmetic is float32 throughout all the same.
        with jax.numpy_dtype_promotion("standard"):
            clipped = jax.tree.map(lambda g: g * scale, grads)
            steps, opt_state = optimizer.transform(hyper).update(clipped, state.opt_state, state.params)
            params = jax.tree.map(lambda p, s: (p - lr * s).astype(p.dtype), state.params, steps)
        if expert_loads and frozen is None:
            params = balance(params, expert_loads, hyper["expert_bias_rate"])
        tokens = jnp.maximum(batch.mask.sum(), 1).astype(jnp.float32)
        metrics = {**{name: value / tokens for name, value in sums.items()}, **maxima}
        if critic is not None and algorithm.critic is not None:
            rate = algorithm.critic.rate(lr, hyper)
            critic, metrics["critic_grad_norm"] = improve(critic, critic_grads, rate, hyper["max_grad_norm"])
            if algorithm.critic.targets is not None:
                metrics["explained_variance"] = explained_variance(batch.values, batch.returns, belongs(batch, "rl"))
            finite &= jnp.isfinite(metrics["critic_grad_norm"])
        average = None if state.average is None else _nearer(state.average, params, hyper["teacher_rate"])
        after = TrainState(params, opt_state, state.step + 1, critic, state.kept, average)
        result = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
        if expert_loads:
            metrics["moe/max_load"] = max_load(expert_loads)
        return result, {
            **metrics,
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": lr,
            "nonfinite": (~finite).astype(jnp.float32),
        }

    return update


def _accumulate(  # type: ignore[no-untyped-def]
    value_and_grad, params: Params, batch: Batch, weights: jax.Array, hyper: Hyper, rows: int, constrain
) -> tuple[jax.Array, Observed, Params]:
    """Loss, what was observed and gradients, over the micro-batches that hold any token."""
    R = batch.tokens.shape[0]
    per_row = batch._replace(rollouts=jnp.broadcast_to(batch.rollouts, (R,)))
    cut = jax.tree.map(lambda a: a.reshape(R // rows, rows, *a.shape[1:]), (per_row, weights))
    filled = (batch.segment_ids > 0).any(axis=1).reshape(R // rows, rows).any(axis=1)

    def one(index: jax.Array) -> tuple[jax.Array, Observed, Params]:
        part, part_weights = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, 0, keepdims=False), cut)
        part = constrain(part._replace(rollouts=batch.rollouts))
        (loss, sums), grads = value_and_grad(params, part, part_weights, hyper)
        return loss, sums, grads

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(one, jnp.zeros((), jnp.int32)))
    last = jnp.max(jnp.where(filled, jnp.arange(1, R // rows + 1), 0))
    return jax.lax.fori_loop(0, last, lambda i, total: _joined(total, one(i)), zeros)


def _joined(
    total: tuple[jax.Array, Observed, Params], part: tuple[jax.Array, Observed, Params]
) -> tuple[jax.Array, Observed, Params]:
    """Everything adds up but maxima."""
    loss, observed, grads = jax.tree.map(jnp.add, total, part)
    return loss, observed._replace(maxima=jax.tree.map(jnp.maximum, total[1].maxima, part[1].maxima)), grads
