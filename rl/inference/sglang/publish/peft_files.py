"""Adapters as SGLang reads them: PEFT's files, with what it takes for granted about them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from envs.errors import ConfigError
from rl.models.base import Model, Params
from rl.models.family import Family
from rl.models.lora import adapted, nested, split
from rl.models.matrices import matrices, path_name
from rl.weights.peft import adapter_tensors, write_adapter

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Modules that are one matrix in a server. Where one of them has an adapter the others need one (`normalize_qkv_proj`
and `normalize_gate_up_proj` in `sglang/srt/lora/lora.py`, 0.5.23); theirs are zeros."""

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What our families have of `SUPPORTED_LORA_TARGET_MODULES` in `sglang/srt/utils/common.py`, 0.5.23."""


class Shape(NamedTuple):
    """What a server has to know before it is given an adapter.

    Attributes:
        rank: of its matrices.
        modules: last names of those that have one.
        scale: of what it adds.
    """

    rank: int
    modules: tuple[str, ...]
    scale: float

    def arguments(self, platform: str) -> dict[str, Any]:
        """Flags of `sglang.launch_server` for such adapters. Its default kernels are for GPUs."""
        flags = {"enable-lora": True, "max-lora-rank": self.rank, "lora-target-modules": list(self.modules)}
        return flags | ({"lora-backend": "torch_native"} if platform == "cpu" else {})


def shape_of(family: Family, model: Model, params: Params) -> Shape:
    """The shape of the adapter that is among a policy's parameters.

    Raises:
        ConfigError: when there is none, or SGLang cannot have it.
    """
    found = adapted(params)
    if not found:
        raise ConfigError(
            "inference.publish=lora sends the adapter alone, but all weights are trained (model.lora.rank=0); choose "
            "inference.publish=disk, or train an adapter: model.lora.rank=8"
        )
    adapter, _ = split(params)
    names = {name.partition(".lora_")[0].rpartition(".")[2] for name in tensors_for_server(family, model, adapter)}
    if strange := sorted(names - set(MODULES)):
        raise ConfigError(
            f"SGLang has no adapters for {', '.join(strange)}, only for {', '.join(MODULES)}; choose others with "
            "model.lora.targets, or inference.publish=disk, which adds adapters to the weights"
        )
    return Shape(found[0].a.shape[-1], tuple(name for name in MODULES if name in names), found[0].scale)


def tensors_for_server(family: Family, model: Model, adapter: Params) -> dict[str, np.ndarray]:
    """PEFT's tensors of an adapter; of modules that a server keeps together with adapted ones, too.

    Args:
        adapter: as `rl.models.lora.split` takes it out.

    Raises:
        ConfigError: when PEFT cannot have it beside a matrix: experts'.
    """
    try:
        return adapter_tensors(family, model, _completed(family, model, adapter))
    except ConfigError as error:
        raise ConfigError(
            f"inference.publish=lora cannot send this adapter: {error}. Choose inference.publish=disk, which adds it "
            "to the weights, or other matrices: model.lora.targets"
        ) from error


def write_for_server(folder: Path, tensors: Mapping[str, np.ndarray], shape: Shape) -> int:
    """Writes an adapter's files; returns the bytes of its numbers.

    The scale is written as alpha / rank, whatever it was made as: SGLang knows no other.
    """
    write_adapter(folder, tensors, list(shape.modules), alpha=shape.scale * shape.rank, root=False, base=None)
    return sum(tensor.nbytes for tensor in tensors.values())


def _completed(family: Family, model: Model, adapter: Params) -> Params:
    """An adapter with zeros for what is kept together with its matrices."""
    table, known = family.tensors(model.config), matrices(model)
    own = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(adapter)}
    having = {path.rpartition("/")[0] for path in own}
    rank = next(leaf.shape[-1] for path, leaf in own.items() if path.endswith("/a"))

    def module(path: str) -> tuple[str, str]:
        """Where a matrix is, and its last name in a checkpoint."""
        return path.rpartition("/")[0], table[path].name.removesuffix(".weight").rpartition(".")[2]

    places = {module(path) for path in having}
    for path, matrix in known.items():
        parent, name = module(path)
        group: Sequence[str] = next((group for group in TOGETHER if name in group), ())
        if path not in having and any((parent, other) in places for other in group):
            cut = matrix.shared + matrix.inputs
            own[f"{path}/a"] = np.zeros((*matrix.shape[:cut], rank), np.float32)
            own[f"{path}/b"] = np.zeros((*matrix.shape[: matrix.shared], rank, *matrix.shape[cut:]), np.float32)
    return nested(own)
