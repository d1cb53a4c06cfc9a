"""The cases of `parity_cases` in our models: loaded from named tensors, and run in every layout of rows."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from parity_cases import LENGTH, sequences

from rl.models import FAMILIES
from rl.models.base import Model, Params
from rl.models.decoder import hidden_states
from rl.models.family import Family, Stored

LAYOUTS = ("alone", "left", "right", "packed")
"""One sequence in its row with nothing beside it (where it is as long), or padding before it, or after it; all those
that fit in one row."""


def family_of(model_type: str) -> Family:
    (family,) = (family for family in FAMILIES.values() if model_type in family.model_types)
    return family


def load(config: Mapping[str, Any], fetch: Callable[[str], np.ndarray]) -> tuple[Model, Params, set[str]]:
    """The model of a `config.json`, its parameters, and the names of the tensors they were made of."""
    family = family_of(config["model_type"])
    model = family.build(family.read_config(config))
    used: set[str] = set()
    stacks = {stack.name: stack.layers for stack in model.stacks}
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def fetched(name: str, transposed: bool) -> np.ndarray:
        used.add(name)
        return fetch(name).T if transposed else fetch(name)

    def parameter(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        keys = [entry.key for entry in path]
        stored: Stored = family.tensors(model.config)["/".join(keys)]
        layers = stacks.get(keys[0], [0])
        experts = range(shape.shape[1]) if "{expert}" in stored.name else [0]
        parts = [fetched(stored.name.format(layer=i, expert=e), stored.transposed) for i in layers for e in experts]
        return jnp.asarray(np.stack(parts).reshape(shape.shape))

    return model, jax.tree_util.tree_map_with_path(parameter, shapes), used


def logits(model: Model, params: Params) -> dict[str, np.ndarray]:
    """Logits of all sequences one after the other, `[tokens, vocabulary]`, in each layout."""
    places = _places()
    tokens, positions, segment_ids = np.zeros((3, len(places), LENGTH), np.int32)
    for row, parts in enumerate(places):
        for number, (start, sequence) in enumerate(parts["sequences"], start=1):
            span = slice(start, start + len(sequence))
            tokens[row, span], segment_ids[row, span] = sequence, number
            positions[row, span] = np.arange(len(sequence))
    hidden = jax.jit(
        lambda *rows: hidden_states(model, params, *rows)[0] @ model.head(params).T,
        compiler_options={"xla_backend_optimization_level": 0},
    )(tokens, positions, segment_ids)
    found: dict[str, list[np.ndarray]] = {layout: [] for layout in LAYOUTS}
    for row, parts in enumerate(places):
        for start, sequence in parts["sequences"]:
            found[parts["layout"]].append(np.asarray(hidden[row, start : start + len(sequence)]))
    return {layout: np.concatenate(values) for layout, values in found.items()}


def _places() -> list[dict[str, Any]]:
    """Rows: their layout, and which sequences begin where. A sequence as long as a row counts for every layout."""
    full, *short = sequences()
    rows = [{"layout": layout, "sequences": [(0, full)]} for layout in LAYOUTS]
    rows += [{"layout": "left", "sequences": [(LENGTH - len(sequence), sequence)]} for sequence in short]
    rows += [{"layout": "right", "sequences": [(0, sequence)]} for sequence in short]
    starts = np.cumsum([0, *map(len, short)])
    return [*rows, {"layout": "packed", "sequences": list(zip(starts.tolist(), short, strict=False))}]
