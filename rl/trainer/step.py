"""Applying an update from the host: arguments placed, metrics fetched, a result that is not finite refused."""

import math
from collections.abc import Callable, Iterable, Mapping

import jax

from envs.errors import UpswingError, first_few
from rl.models.base import Params
from rl.trainer.state import TrainState
from rl.trainer.update import Update
from rl.types import Batch


class NonFiniteError(UpswingError):
    """A loss or gradient was not finite. The state is as it was before the update."""


class MismatchError(UpswingError):
    """The sampler's log-probabilities are not those of the policy that is trained."""


Apply = Callable[[TrainState, Batch], tuple[TrainState, dict[str, float]]]


def make_apply(update: Update, hyper: Mapping[str, float], frozen: Params | None = None) -> Apply:
    """Compiles `update` and closes it over its hyper-parameters; the state that is passed in is used up.

    Args:
        update: from `make_update`.
        hyper: its numbers.
        frozen: weights beside the adapter that is trained; they stay whole. None: everything is trained.
    """
    compiled = jax.jit(update, donate_argnums=0)

    def apply(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, float]]:
        state, metrics = compiled(state, batch, dict(hyper), frozen)
        return state, {name: float(value) for name, value in jax.device_get(metrics).items()}

    return apply


def check_finite(step: int, metrics: Mapping[str, float], tasks: Iterable[str]) -> None:
    """Raises `NonFiniteError` when the update was refused, naming the step (from 1) and its tasks."""
    if not metrics["nonfinite"]:
        return
    cause = "loss" if not math.isfinite(metrics["loss"]) else "gradient"
    raise NonFiniteError(
        f"update {step}: the {cause} is not finite (loss {metrics['loss']}, gradient norm {metrics['grad_norm']}); "
        f"tasks: {first_few(tasks)}. The weights were left as they were and are checkpointed; lower optimizer.lr or "
        "look at these tasks' rewards, then go on with resume=true"
    )


def check_mismatch(step: int, metrics: Mapping[str, float], limit: float | None) -> None:
    """Raises `MismatchError` when sampler and trainer disagree on tokens that the current policy drew.

    Where tokens are of older policies (`staleness` above 0), learning is part of the difference: nothing is checked.

    Args:
        step: from 1.
        metrics: of the update: `mismatch/k3`, which algorithms without ratios do not have, and `staleness`.
        limit: most nats per token; None: any.
    """
    found = metrics.get("mismatch/k3")
    if limit is None or found is None or metrics.get("staleness", 0.0) > 0 or found <= limit:
        return
    mean, largest = metrics.get("mismatch/abs", math.nan), metrics.get("mismatch/max", math.nan)
    raise MismatchError(
        f"update {step}: the sampler's log-probabilities are {found:.3g} nats per token (k3; in absolute difference "
        f"{mean:.3g}, at worst {largest:.3g}) from the trainer's, on tokens of the very same policy; expected at most "
        f"{limit:g} (inference.mismatch_limit). Likely: the sampler has other weights (its log tells), computes in "
        "another dtype (hardware.compute_dtype, inference.dtype), or has another model (rope, tied embeddings). rl "
        "parity compares both token by token; where such a difference is known and wanted, raise the limit"
    )
