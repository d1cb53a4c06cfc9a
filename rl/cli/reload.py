"""Weights for a model that is being served: out of a Hugging Face directory, a GGUF file, or a run."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax

from envs.errors import ConfigError
from rl.cli.build import Policy, make_policy
from rl.cli.model import model_of_run
from rl.config import HardwareConfig
from rl.models.base import DecoderConfig, Params
from rl.models.lora import dense
from rl.weights.load import load
from rl.weights.source import family_of, find_source, open_source, shape_of

OURS_TO_CHOOSE = ("context", "compute_dtype")
"""What a server may set otherwise than a checkpoint's config."""


def weights_reader(policy: Policy, hardware: HardwareConfig, dtype: str) -> Callable[[str], Params]:
    """`read(path) -> params`, laid out as those that are served.

    `path` is a Hugging Face directory (its tokenizer is not looked at, so it may be missing), a GGUF file, or the
    directory of a run, whose newest weights are read, with an adapter if it has one.

    Args:
        policy: what is served. Its parameters are not kept.
        hardware: where.
        dtype: of the parameters.
    """
    model, origin = policy.model, policy.origin
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), dense(policy.params))

    def read(path: str) -> Params:
        if (Path(path) / "config.yaml").is_file():
            params = dense(make_policy(model_of_run(Path(path)), hardware, seed=0).params)
            _check(path, like, params)
            return params
        source = open_source(find_source(path))
        if family_of(source) is not origin.family:
            raise ConfigError(
                f"its model_type is {source.config.get('model_type')!r}, of another family than the served"
            )
        shape = shape_of(source)
        differing = [
            f"{f.name} {getattr(shape, f.name)} instead of {getattr(origin.shape, f.name)}"
            for f in fields(DecoderConfig)
            if f.name not in OURS_TO_CHOOSE and getattr(shape, f.name) != getattr(origin.shape, f.name)
        ]
        if differing:
            raise ConfigError(f"it is another model than the one that is served: {', '.join(differing)}")
        return load(source, origin.family, model, jax.tree.map(lambda a: a.sharding, like), dtype)

    return read


def _check(path: str, like: Any, params: Params) -> None:
    found, wanted = (
        {jax.tree_util.keystr(where): (leaf.shape, str(leaf.dtype)) for where, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (params, like))
    )
    if differing := [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]:
        name = differing[0]
        raise ConfigError(
            f"the run has another model than the one that is served: {name} is {found.get(name, 'missing')}; "
            f"expected {wanted.get(name, 'no such weight')}"
        )
