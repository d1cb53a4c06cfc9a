"""A model family: how its `config.json` becomes a shape, its shape a model, and its checkpoints' tensors parameters."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rl.models.base import DecoderConfig, Model


class Stored(NamedTuple):
    """How one parameter lies in a checkpoint.

    Attributes:
        name: of the tensor; `{layer}` and `{expert}` stand for the numbers of layer and expert, whose tensors are
            stacked on the parameter's leading axes, in that order.
        transposed: the tensor is `[outputs, inputs]`, as `torch.nn.Linear` keeps it, and the parameter
            `[inputs…, outputs…]`. Otherwise the two agree up to their shape.
    """

    name: str
    transposed: bool = False


Tensors = Mapping[str, Stored]
"""Parameter path ("layers/attention/q") -> where it lies."""


class Family(NamedTuple):
    """What `rl.models` knows of a family; each file of a family ends with its own.

    Attributes:
        name: its key in configs, and the name of its file.
        model_types: the values of `model_type` in `config.json` that it reads; the first is the one it writes.
        read_config: `config.json` -> shape. Raises `UnsupportedModel` for what it would compute wrongly.
        write_config: shape -> `config.json`, such that `read_config` gives back an equal shape.
        build: shape -> model.
        tensors: shape -> where each parameter lies in a checkpoint.
    """

    name: str
    model_types: tuple[str, ...]
    read_config: Callable[[Mapping[str, Any]], DecoderConfig]
    write_config: Callable[[Any], dict[str, Any]]
    build: Callable[[Any], Model]
    tensors: Callable[[Any], Tensors]


class UnsupportedModel(ValueError):
    """A checkpoint asks for something that its family does not compute here."""


def needed(config: Mapping[str, Any], key: str) -> Any:
    """A value that a `config.json` must have.

    Raises:
        UnsupportedModel: when it has not.
    """
    if config.get(key) is None:
        raise UnsupportedModel(f"config.json of a {config.get('model_type')} model has no {key}")
    return config[key]


def require(config: Mapping[str, Any], **expected: Any) -> None:
    """Refuses a `config.json` whose keys have other values than these (an absent key is as expected).

    Raises:
        UnsupportedModel: naming the key, its value and what is supported.
    """
    for key, value in expected.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if config.get(key, allowed[0]) not in allowed:
            raise UnsupportedModel(
                f"config.json of a {config.get('model_type')} model has {key}={config[key]!r}; "
                f"supported here: {', '.join(map(repr, allowed))}"
            )
