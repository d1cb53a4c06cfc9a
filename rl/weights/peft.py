"""Adapters as Hugging Face PEFT keeps them: `adapter_config.json` and `adapter_model.safetensors`, in and out.

https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from envs.errors import ConfigError, UpswingError, first_few
from rl.models.base import Model, Params
from rl.models.family import Family, Stored
from rl.models.matrices import matrices
from rl.weights.source import package

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PARTS = {"a": "lora_A", "b": "lora_B"}

PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    **dict.fromkeys(("fan_in_fan_out", "lora_bias", "use_bdlora", "use_dora", "use_qalora"), (None, False)),
}
"""What adapters may say of themselves that are computed here."""


class Named(NamedTuple):
    """A tensor of an adapter: the parameter it stands beside (as keys), the layer's number in its stack, "a" or "b"."""

    path: tuple[str, ...]
    layer: int
    part: str


class Settings(NamedTuple):
    """What an adapter says of itself: the arguments of `rl.models.lora.lora`."""

    rank: int
    alpha: float
    targets: str
    root: bool


def is_peft(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def save_adapter(
    folder: Path, family: Family, model: Model, adapter: Params, *, alpha: float, root: bool, base: str | None
) -> None:
    """Writes an adapter, from which `peft` computes the same.

    Args:
        folder: exists; files of the same names are replaced.
        family: of the model.
        model: that it was trained beside.
        adapter: as `rl.models.lora.split` takes it out.
        alpha: of the scale.
        root: the scale is `alpha / sqrt(rank)`.
        base: where the model was loaded from, for whoever loads the adapter.

    Raises:
        ConfigError: when PEFT cannot have it beside a matrix: experts', and all that are called like them.
    """
    tensors = adapter_tensors(family, model, adapter)
    modules, known = {_module(name) for name in tensors}, {_module(name) for name in _names(family, model)}
    write_adapter(folder, tensors, _target_modules(modules, known), alpha=alpha, root=root, base=base)


def adapter_tensors(family: Family, model: Model, adapter: Params) -> dict[str, np.ndarray]:
    """An adapter as PEFT names and turns its matrices, one for each layer: A is `[r, inputs]`, B `[outputs, r]`.

    Args:
        adapter: as `rl.models.lora.split` takes it out.

    Raises:
        ConfigError: as `save_adapter`.
    """
    names = _names(family, model)
    found = {path: np.asarray(leaf) for path, leaf in _leaves(adapter)}
    known = {named.path for named in names.values()}
    if lost := sorted({"/".join(path) for *path, _ in found if tuple(path) not in known}):
        raise ConfigError(
            f"PEFT has no module for {', '.join(lost)}, whose adapter only a merged export can hold: rl export RUN DIR"
        )
    tensors = {}
    for name, (path, layer, part) in names.items():
        if (*path, part) in found:
            own = found[*path, part][layer]
            rank = own.shape[-1] if part == "a" else own.shape[0]
            tensors[name] = np.ascontiguousarray((own.reshape(-1, rank) if part == "a" else own.reshape(rank, -1)).T)
    return tensors


def write_adapter(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    target_modules: Sequence[str] | str,
    *,
    alpha: float,
    root: bool,
    base: str | None,
) -> None:
    """Writes the files of an adapter; the arguments as for `save_adapter`, its tensors by `adapter_tensors`."""
    package("safetensors.numpy").save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": next(tensor.shape[0] for name, tensor in tensors.items() if f".{PARTS['a']}." in name),
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": root,
        "target_modules": target_modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def read_settings(folder: Path, family: Family, model: Model) -> Settings:
    """What an adapter says of itself.

    Raises:
        ConfigError: when it asks for what is not computed here, or is of another model.
        UpswingError: when a file is damaged.
    """
    config = _config(folder)
    names = _names(family, model)
    with _open(folder) as file:
        stored = set(file.keys())
    if unknown := stored - set(names):
        raise ConfigError(
            f"{folder} holds tensors that this {family.name} model has no matrix for: {first_few(unknown)}"
        )
    paths = {names[name].path for name in stored}
    needed = {name for name, named in names.items() if named.path in paths}
    if missing := needed - stored:
        raise ConfigError(f"{folder} lacks {first_few(sorted(missing))}; adapters are of all layers alike here")
    targets = "|".join(re.escape("/".join(path)) for path in sorted(paths))
    return Settings(int(config["r"]), float(config["lora_alpha"]), targets, bool(config.get("use_rslora")))


def load_adapter(folder: Path, family: Family, model: Model, like: Params) -> Params:
    """An adapter's numbers, laid out as `like`, which was made from what `read_settings` found.

    Raises:
        UpswingError: when a tensor has another shape.
    """
    names = {named: name for name, named in _names(family, model).items()}
    flat = dict(_leaves(like))
    with _open(folder) as file:

        def read(path: tuple[str, ...], leaf: jax.Array) -> jax.Array:
            *above, part = path
            layers = []
            for layer in range(leaf.shape[0]):
                name = names[Named(tuple(above), layer, part)]
                shape = leaf.shape[1:]
                wanted = (shape[-1], math.prod(shape[:-1])) if part == "a" else (math.prod(shape[1:]), shape[0])
                tensor = file.get_tensor(name)
                if tensor.shape != wanted:
                    raise UpswingError(f"{folder}: '{name}' has shape {tensor.shape}, but the model expects {wanted}")
                layers.append(tensor.T.reshape(shape))
            return jax.device_put(np.stack(layers).astype(leaf.dtype), leaf.sharding)

        loaded = [read(path, leaf) for path, leaf in flat.items()]
    return jax.tree.unflatten(jax.tree.structure(like), loaded)


def _names(family: Family, model: Model) -> dict[str, Named]:
    """The tensors that adapters of a model may have, and what they are."""
    layers = {stack.name: stack.layers for stack in model.stacks}
    table = family.tensors(model.config)
    # Transformers makes one parameter of all experts' matrices, and PEFT takes every module of their names for it.
    fused = {_last_name(stored) for stored in table.values() if "{expert}" in stored.name}
    found = {}
    for path in matrices(model):
        keys, stored = tuple(path.split("/")), table[path]
        if not stored.transposed or _last_name(stored) in fused:
            continue  # no torch.nn.Linear
        for layer, number in enumerate(layers[keys[0]]):
            module = stored.name.removesuffix(".weight").format(layer=number)
            for part, name in PARTS.items():
                found[f"base_model.model.{module}.{name}.weight"] = Named(keys, layer, part)
    return found


def _last_name(stored: Stored) -> str:
    """ "q_proj"."""
    return stored.name.removesuffix(".weight").rpartition(".")[2]


def _module(name: str) -> str:
    """ "model.layers.3.self_attn.q_proj", of a tensor's name."""
    return name.removeprefix("base_model.model.").rpartition(".lora_")[0]


def _target_modules(adapted: set[str], modules: set[str]) -> list[str] | str:
    """Their last names, which most tools read; an expression where others have the same ones."""
    last = {module.rpartition(".")[2] for module in adapted}
    if all(module in adapted for module in modules if module.rpartition(".")[2] in last):
        return sorted(last)
    return "|".join(re.escape(module) for module in sorted(adapted))


def _leaves(adapter: Params) -> Iterator[tuple[tuple[str, ...], Any]]:
    for path, leaf in jax.tree.leaves_with_path(adapter):
        yield tuple(key.key for key in path), leaf


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
    for key, values in PLAIN.items():
        if key in config and config[key] not in values:
            raise ConfigError(f"{folder / CONFIG} has {key}={config[key]!r}; supported here: {values[0]!r}")
    return config


def _open(folder: Path) -> Any:
    path = folder / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"{folder} has no {WEIGHTS}, which its {CONFIG} belongs to")
    safetensors = package("safetensors")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise UpswingError(f"{path} is damaged or cut short: {error}; copy it again") from error
