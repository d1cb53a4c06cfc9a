"""Several optimizer steps per batch: PPO's mini-batches and epochs, as one update.

The policy version, the schedule of the learning rate and checkpoints count updates, that is batches; a run that is
killed within one makes all of its steps again, from the same rollouts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from rl.algorithms.base import Algorithm, unprepared
from rl.models.base import Params
from rl.models.lora import join
from rl.trainer.critic import whole
from rl.trainer.optimizer import Optimizer
from rl.trainer.reference import by_rows
from rl.trainer.state import TrainState
from rl.trainer.update import Metrics, Score, Update, make_update
from rl.types import Batch, Hyper


def make_updates(
    score: Score,
    algorithm: Algorithm,
    optimizer: Optimizer,
    microbatch_rows: int,
    constrain: Callable[[Batch], Batch] = lambda batch: batch,
    *,
    minibatches: int = 1,
    epochs: int = 1,
) -> Update:
    """As `make_update`, with `epochs` passes over a batch that is cut into `minibatches`, a step after each.

    Log-probabilities under the policy that the batch finds are recorded first (`Batch.proximal_logprobs`): ratios to
    "current" and corrections are about that policy through all steps. Token weights come from the whole batch and are
    multiplied by the number of mini-batches, so the steps of a pass add up to that many times the batch's gradient.
    Which rows go together is drawn anew in each pass, from the number of the update. One step that is not finite leaves
    the state as the batch found it; for that, the state is kept twice meanwhile. An algorithm that `scores_first` makes
    one step, with those log-probabilities.

    Metrics are means over the steps, but `nonfinite` and `mismatch/max`, the largest.

    Args:
        score: from `make_score`.
        algorithm: loss and weights.
        optimizer: gradient transformation and schedule.
        microbatch_rows: with `minibatches`, divides the batch's number of rows.
        constrain: pins each micro-batch to the mesh.
        minibatches: steps per pass.
        epochs: passes over a batch.

    Raises:
        ValueError: for several steps of an algorithm that prepares the first.
    """
    single = make_update(score, algorithm, optimizer, microbatch_rows, constrain)
    if minibatches == epochs == 1 and not algorithm.scores_first:
        return single

    def scored_and_single(
        state: TrainState, batch: Batch, hyper: Hyper, frozen: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        return single(state, scored(score, state, batch, hyper, frozen, microbatch_rows), hyper, frozen)

    if minibatches == epochs == 1:
        return scored_and_single
    if algorithm.scores_first:
        raise ValueError(
            f"minibatches={minibatches}, epochs={epochs}: pairs are scored for one step; expected 1 of each"
        )

    def update(
        state: TrainState, batch: Batch, hyper: Hyper, frozen: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        found = scored(score, state, batch, hyper, frozen, microbatch_rows)
        batch = algorithm.prepare(found, {**hyper, "version": state.step})
        weights = algorithm.weights(batch) * minibatches
        per_row = batch._replace(rollouts=jnp.broadcast_to(batch.rollouts, weights.shape[:1]))

        def step(now: TrainState, rows: Int[Array, "r"]) -> tuple[TrainState, Metrics]:
            part, part_weights = jax.tree.map(lambda a: a[rows], (per_row, weights))
            ready = algorithm._replace(prepare=unprepared, weights=lambda _: part_weights)
            one = make_update(score, ready, optimizer, microbatch_rows, constrain)
            after, metrics = one(now, part._replace(rollouts=batch.rollouts), hyper, frozen)
            return after._replace(step=state.step), metrics

        rows = assigned(state.step, batch.tokens.shape[0], minibatches, epochs)
        after, each = jax.lax.scan(step, state, rows)
        metrics = {name: values.max() if name in LARGEST else values.mean() for name, values in each.items()}
        after = after._replace(step=state.step + 1)
        finite = metrics["nonfinite"] == 0
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state), metrics

    return update


def scored(score: Score, state: TrainState, batch: Batch, hyper: Hyper, frozen: Params | None, rows: int) -> Batch:
    """The batch with `proximal_logprobs`: what the policy that it finds says, `rows` at a time."""
    policy = join(state.params, frozen)
    judged = () if state.critic is None else (whole(state.critic.params, policy, frozen),)
    found = by_rows(lambda few: score(policy, few, hyper["temperature"], *judged).logprobs, batch, rows)
    return batch._replace(proximal_logprobs=found)


def make_measure(
    score: Score, algorithm: Algorithm, rows: int, hyper: Hyper, frozen: Params | None = None
) -> Callable[[TrainState, Batch], dict[str, float]]:
    """`measure(state, batch)`: what an algorithm that `scores_first` observes of a batch, without a step.

    Args:
        score: from `make_score`, or `rl.trainer.reward.make_reward_score`.
        algorithm: whose `prepare` observes.
        rows: scored at once; divides the batch's number of rows.
        hyper: its numbers, and the temperature.
        frozen: weights beside the adapter that is trained.
    """

    @jax.jit
    def measured(state: TrainState, batch: Batch, frozen: Params | None) -> dict[str, jax.Array]:
        observed = algorithm.prepare(scored(score, state, batch, hyper, frozen, rows), hyper).observed
        return {name: value[0, 0] for name, value in observed.items()}

    def measure(state: TrainState, batch: Batch) -> dict[str, float]:
        return {name: float(value) for name, value in jax.device_get(measured(state, batch, frozen)).items()}

    return measure


LARGEST = ("nonfinite", "mismatch/max")


def assigned(step: Int[Array, ""], rows: int, minibatches: int, epochs: int) -> Int[Array, "steps rows"]:
    """The rows of each step, `[epochs * minibatches, rows / minibatches]`.

    Neighbours go apart: rows are ordered by length, and those that hold anything come first, so every mini-batch has
    its share of each kind, and its padding last.
    """
    keys = jax.vmap(lambda epoch: jax.random.fold_in(jax.random.key(step), epoch))(jnp.arange(epochs))
    places = jnp.broadcast_to(jnp.arange(minibatches), (rows // minibatches, minibatches))
    drawn = jax.vmap(lambda key: jax.random.permutation(key, places, axis=1, independent=True))(keys)
    first = jnp.arange(0, rows, minibatches)[None, :, None]
    return jnp.swapaxes(first + drawn, 1, 2).reshape(epochs * minibatches, rows // minibatches)
