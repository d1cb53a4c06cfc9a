"""What `model` in a config stands for: a family, a shape, a chat format, and where the weights come from."""

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.errors import ConfigError, unknown_name
from envs.render import ByteRenderer, Renderer, load_renderer
from envs.render.subword import FILE, Merges, SubwordRenderer, read_vocabulary
from envs.signature import bind
from rl.cli.adapter import model_settings
from rl.config import ModelConfig
from rl.models import FAMILIES
from rl.models.base import DecoderConfig, Model, Params
from rl.models.family import Family
from rl.weights.mxfp4 import UnpackedMxfp4
from rl.weights.safetensors_dir import SafetensorsDirectory
from rl.weights.source import Source, family_of, find_source, open_source, shape_of

DTYPES = ("float32", "bfloat16")

SIZES = {  # key of `model` -> key of config.json, and what fresh weights have when nothing is said
    "layers": ("num_hidden_layers", 4),
    "width": ("hidden_size", 128),
    "heads": ("num_attention_heads", 4),
    "kv_heads": ("num_key_value_heads", 2),
    "ffn": ("intermediate_size", 384),
    "context": ("max_position_embeddings", 256),
    "rope_theta": ("rope_theta", 10_000.0),
}


class Origin(NamedTuple):
    """A model before it has devices.

    Attributes:
        family: what it is.
        shape: how large.
        renderer: its chat format.
        source: the checkpoint of its weights; None: they are fresh.
        settings: its `config.json`.
    """

    family: Family
    shape: DecoderConfig
    renderer: Renderer
    source: Source | None
    settings: dict[str, Any]

    @property
    def directory(self) -> SafetensorsDirectory | None:
        """The checkpoint, if it is a Hugging Face directory."""
        source = self.source.directory if isinstance(self.source, UnpackedMxfp4) else self.source
        return source if isinstance(source, SafetensorsDirectory) else None


def open_model(config: ModelConfig, vocabulary: Merges = ()) -> Origin:
    """Finds the checkpoint or works out the shape; no weights are read or drawn yet.

    Args:
        vocabulary: that of weights which begin anew, where `config.vocabulary` asks for one.

    Raises:
        ConfigError: when sizes do not fit, or the source cannot be used.
    """
    if config.dtype not in DTYPES:
        raise unknown_name("model.dtype", config.dtype, DTYPES)
    return _fresh(config, vocabulary) if config.source is None else _from_source(config, config.source)


def _fresh(config: ModelConfig, vocabulary: Merges) -> Origin:
    renderer = _own_renderer(config, vocabulary)
    name = config.name or "none"
    if name not in FAMILIES:
        raise unknown_name("model.name", name, FAMILIES, "or name a checkpoint with model.source")
    given = {key: getattr(config, size) for size, (key, _) in SIZES.items()}
    settings = {key: default if given[key] is None else given[key] for key, default in SIZES.values()}
    family = FAMILIES[name]
    settings |= {"model_type": family.model_types[0], "vocab_size": renderer.vocab_size}
    settings |= {"rms_norm_eps": 1e-6, "tie_word_embeddings": True, **config.options}
    with as_config_error("model"):
        return Origin(family, family.read_config(settings), renderer, None, settings)


def _own_renderer(config: ModelConfig, vocabulary: Merges) -> ByteRenderer:
    """How weights of our own speak: in the vocabulary just learned, as the run they come from does, or in bytes."""
    options = bind(ByteRenderer, config.renderer, kind="renderer of fresh weights")
    if not vocabulary and config.checkpoint is not None and (Path(config.checkpoint) / FILE).is_file():
        vocabulary = read_vocabulary(Path(config.checkpoint))
    if vocabulary:
        return SubwordRenderer(vocabulary, **options)
    if config.vocabulary is None:
        return ByteRenderer(**options)
    raise ConfigError(
        f"model.vocabulary is {config.vocabulary}, but "
        + (
            "rl train and rl sft learn it, and keep it with the weights: name a run"
            if config.checkpoint is None
            else f"{config.checkpoint} has no {FILE}: its weights speak in bytes; leave model.vocabulary out"
        )
    )


def _from_source(config: ModelConfig, name: str) -> Origin:
    if given := [
        key for key in (*SIZES, "name", "vocabulary") if key != "context" and getattr(config, key) is not None
    ]:
        keys = ", ".join(f"model.{key}" for key in given)
        raise ConfigError(f"{keys} cannot be chosen for model.source={name}: its config.json says; leave them out")
    path = find_source(name)
    source = open_source(path)
    settings = {**source.config, **config.options}
    family, shape = family_of(source), shape_of(source, settings)
    if config.context is not None:
        if not 2 <= config.context <= shape.context:
            raise ConfigError(f"model.context is {config.context}; expected 2 … {shape.context}, which {path} has")
        shape = replace(shape, context=config.context)
    renderer = load_renderer(path, **config.renderer)
    if renderer.vocab_size > shape.vocab_size:
        raise ConfigError(
            f"{path}: the tokenizer has {renderer.vocab_size} tokens, the model only {shape.vocab_size}; "
            "the files do not belong together"
        )
    return Origin(family, shape, renderer, source, settings)


def fresh_params(model: Model, shardings: Params, dtype: str, seed: int) -> Params:
    """Random weights, laid out over the mesh."""

    def draw(key: jax.Array) -> Params:
        return jax.tree.map(lambda x: x.astype(dtype), model.init(key))

    return jax.jit(draw, out_shardings=shardings)(jax.random.key(seed))


def abstract_params(model: Model, shardings: Params, dtype: str) -> Params:
    """Shape, dtype and place of each weight, without the weights."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, jnp.dtype(dtype), sharding=s), shapes, shardings)


def model_of_run(run: Path) -> ModelConfig:
    """The model of a run, with its newest weights.

    Raises:
        ConfigError: when the folder is no run.
    """
    config = model_settings(run)
    if config.lora.rank or config.lora.adapter is not None:
        return replace(config, lora=replace(config.lora, adapter=str(run)))
    return replace(config, checkpoint=str(run))


def model_name(config: ModelConfig) -> str:
    """How a table calls a model: by its adapter, its run, its checkpoint or its family."""
    if config.lora.adapter is not None:
        return config.lora.adapter
    if config.checkpoint is not None:
        return config.checkpoint
    return f"{config.name}, untrained" if config.source is None else Path(config.source).stem


class as_config_error:
    """Turns a `ValueError` of a constructor into a `ConfigError` that says which section of the config it is about."""

    def __init__(self, section: str) -> None:
        self._section = section

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, ValueError):
            raise ConfigError(f"{self._section}: {error}") from error
