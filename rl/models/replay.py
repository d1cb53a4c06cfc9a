"""Routing replay: which experts tokens went through, laid out so that another forward pass can go the same way.

A token's experts are a discrete choice: the least difference in arithmetic or weights may let a trainer choose others
than the sampler did, and then it computes the probability that another network gives to the token. With the sampler's
choices it computes that of the network that was sampled from (R3, arXiv:2510.11370). Gates are computed anew, over the
given experts, so that gradients reach the router. Shape letters: k experts of a token.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt

from rl.models.base import Model, Observed


def expert_layers(model: Model) -> dict[str, int]:
    """How many layers with experts each stack has, in order; stacks without any are left out."""
    return {
        stack.name: len(stack.layers) for stack in model.stacks if "router" in model.axes[stack.name].get("ffn", {})
    }


def choice_shape(model: Model) -> tuple[int, int]:
    """Layers that have experts, and experts of a token; 0 and 0 for a model without."""
    return sum(expert_layers(model).values()), getattr(model.config, "experts_per_token", 0)


def choice_dtype(model: Model) -> Any:
    """What is large enough for the number of an expert."""
    return jnp.dtype(jnp.uint8 if getattr(model.config, "experts", 0) <= 256 else jnp.uint16)


def by_stack(model: Model, experts: Int[Array, "R L layers k"]) -> dict[str, Int[Array, "n R L k"]]:
    """Choices of all layers that have experts, as the layers of each stack take them.

    Raises:
        ValueError: when they are of another number of layers, or experts, than the model's.
    """
    expected = choice_shape(model)
    if experts.shape[2:] != expected:
        raise ValueError(
            f"choices of experts are {experts.shape[2:]} (layers, experts of a token), but the model's are {expected}"
        )
    result, first = {}, 0
    for name, count in expert_layers(model).items():
        result[name] = jnp.moveaxis(experts[:, :, first : first + count], 2, 0)
        first += count
    return result


def chosen(model: Model, observed: Mapping[str, Observed]) -> Int[Array, "R L layers k"]:
    """The experts that each token went through, from what `hidden_states` observed: what it takes as `experts`."""
    each: list[jax.Array] = [observed[name]["experts"] for name in expert_layers(model)]
    return jnp.moveaxis(jnp.concatenate(each), 0, 2)


def recorded(model: Model, seen: Sequence[Observed]) -> UInt[Array, "B T layers k"]:
    """The experts that tokens went through, from what each layer observed, in as few bytes as will do."""
    each = [layer["experts"].astype(choice_dtype(model)) for layer in seen if "experts" in layer]
    return jnp.stack(each, axis=2)
