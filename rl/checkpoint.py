"""Training states on disk, through Orbax. A checkpoint exists whole or not at all; writing does not stop training."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from envs.errors import ConfigError, UpswingError
from rl.models.base import Params
from rl.trainer.state import TrainState


class Checkpoints:
    """The checkpoints of one stage of a run, one folder per update.

    Args:
        directory: where they lie; made when the first one is written.
        every: updates between two checkpoints.
        keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, *, every: int, keep: int) -> None:
        if every < 1 or keep < 1:
            raise ConfigError(f"checkpoint.every={every}, checkpoint.keep={keep}; expected at least 1 of each")
        self._directory = directory.resolve()
        self._every, self._keep = every, keep
        self._writing: Any = None

    def steps(self) -> list[int]:
        """Updates after which a whole checkpoint exists, in order."""
        # Orbax writes under another name and renames what is whole; its metadata file tells it from any other folder.
        found = self._directory.glob("*/_CHECKPOINT_METADATA")
        return sorted(int(path.parent.name) for path in found if path.parent.name.isdigit())

    def due(self, step: int, last: int) -> bool:
        """Whether the state after update `step` of `last` is to be written."""
        return step % self._every == 0 or step == last

    def save(self, state: TrainState) -> None:
        """Writes the state in the background; waits for the write before it, if that is not done."""
        self.wait()
        step = int(state.step)
        if step in self.steps():
            return
        # The next update donates these very buffers, so the writer gets its own.
        own = jax.tree.map(jnp.copy, _stored(state))
        self._writing = ocp.save_async(self._directory / f"{step:08d}", own)

    def wait(self) -> None:
        """Returns once everything is on disk, and older checkpoints than the newest `keep` are gone."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None
        for step in self.steps()[: -self._keep]:
            ocp.delete(self._directory / f"{step:08d}")

    def load(self, like: TrainState) -> TrainState | None:
        """The newest state, laid out as `like` is; None if there is none.

        Raises:
            UpswingError: when it does not fit `like`.
        """
        steps = self.steps()
        if not steps:
            return None
        path = self._directory / f"{steps[-1]:08d}"
        return jax.tree.map(_free_like, TrainState(**_load(path, _stored(like))), like)


def _stored(state: TrainState) -> dict[str, Any]:
    """The parts of a state that there are: most have no critic."""
    return {name: part for name, part in state._asdict().items() if jax.tree.leaves(part) or name == "opt_state"}


def _free_like(leaf: jax.Array, like: jax.Array) -> jax.Array:
    """What `like` leaves to jax to place, such as a counter beside weights on a mesh, stays so: Orbax pins it."""
    return leaf if like.committed else jnp.asarray(np.asarray(leaf))


def load_params(run: Path, like: Params) -> Params:
    """The newest weights of a run that `rl sft` or `rl train` made.

    Raises:
        UpswingError: when there are none, or they have other shapes than the model.
    """
    return _load(_newest(run), {"params": like}, partial=True)["params"]


def load_critic(run: Path, like: Params) -> Params:
    """The newest parameters of the critic of a run, or those of a reward model beside its weights.

    Raises:
        UpswingError: when there are none.
    """
    return _load(_newest(run), {"critic": {"params": like}}, partial=True)["critic"]["params"]


def _newest(run: Path) -> Path:
    """The newest checkpoint of a run's last stage."""
    for stage in ("train", "warm_start"):
        steps = Checkpoints(run / "checkpoints" / stage, every=1, keep=1).steps()
        if steps:
            return (run / "checkpoints" / stage / f"{steps[-1]:08d}").resolve()
    raise UpswingError(f"{run} holds no checkpoint; expected the folder of a run of `rl train` or `rl sft`")


def _load(path: Path, like: dict[str, Any], *, partial: bool = False) -> dict[str, Any]:
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like)
    found = jax.tree_util.tree_leaves_with_path(ocp.metadata(path).metadata)
    shapes = {_name(leaf_path): tuple(leaf.shape) for leaf_path, leaf in found}
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        name = _name(leaf_path)
        if shapes.get(name) != leaf.shape:
            raise UpswingError(
                f"checkpoint {path}: '{name}' has shape {shapes.get(name, 'none (it is missing)')}, but the model "
                f"expects {leaf.shape}; use the model settings it was trained with (config.yaml of its run)"
            )
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    with context:
        loaded: dict[str, Any] = ocp.load(path, abstract)
    return loaded


def _name(path: Any) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
