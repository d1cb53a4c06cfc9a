"""What many families name alike in `config.json` and in checkpoints: sizes, windows, attention, gated layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rl.models.base import DecoderConfig
from rl.models.family import Stored, Tensors, UnsupportedModel, needed

LAYER = "model.layers.{layer}"


def read_sizes(config: Mapping[str, Any], *, tied: bool = False) -> dict[str, Any]:
    """The arguments of `DecoderConfig` that all families have.

    Args:
        config: `config.json`.
        tied: whether the head is the embedding when the file does not say.

    Raises:
        UnsupportedModel: for a size that is missing.
    """
    return {
        "vocab_size": needed(config, "vocab_size"),
        "layers": needed(config, "num_hidden_layers"),
        "width": needed(config, "hidden_size"),
        "heads": needed(config, "num_attention_heads"),
        "kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "ffn": needed(config, "intermediate_size"),
        "context": needed(config, "max_position_embeddings"),
        "head_size": config.get("head_dim") or 0,
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "tie_embeddings": config.get("tie_word_embeddings", tied),
    }


def write_sizes(config: DecoderConfig) -> dict[str, Any]:
    """What `read_sizes` reads."""
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.context,
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


def read_layer_types(config: Mapping[str, Any], slides: Callable[[int], bool]) -> list[bool]:
    """Whether each layer's attention has a sliding window.

    Args:
        config: `config.json`.
        slides: says it of a layer's number when the file has no `layer_types`.

    Raises:
        UnsupportedModel: for another kind of layer, or a list of another length.
    """
    layers = needed(config, "num_hidden_layers")
    types = config.get("layer_types") or [_TYPES[slides(i)] for i in range(layers)]
    if unknown := set(types) - set(_TYPES):
        raise UnsupportedModel(f"config.json: layer_types has {min(unknown)!r}; supported here: {', '.join(_TYPES)}")
    if len(types) != layers:
        raise UnsupportedModel(f"config.json: layer_types has {len(types)} entries for {layers} layers")
    return [kind == _TYPES[True] for kind in types]


def read_windows(config: Mapping[str, Any], sliding: Sequence[bool]) -> tuple[int | None, ...]:
    """How far each layer sees, given which of them slide; a model without a `sliding_window` has none."""
    return tuple(config.get("sliding_window") if slides else None for slides in sliding)


def write_windows(windows: Sequence[int | None], sliding: Sequence[bool] | None = None) -> dict[str, Any]:
    """The keys that `read_layer_types` and `read_windows` read.

    Args:
        windows: of each layer.
        sliding: which layers are of the sliding kind, where that says more than that they have a window.
    """
    kinds = [window is not None for window in windows] if sliding is None else sliding
    return {
        "sliding_window": next((window for window in windows if window is not None), None),
        "layer_types": [_TYPES[slides] for slides in kinds],
    }


_TYPES = ("full_attention", "sliding_attention")


def ends(config: DecoderConfig) -> Tensors:
    """Embeddings, last norm and head."""
    head = {} if config.tie_embeddings else {"head": Stored("lm_head.weight")}
    return {"embed": Stored("model.embed_tokens.weight"), "norm/scale": Stored("model.norm.weight"), **head}


def norms(
    stack: str, attention_norm: str = "input_layernorm", ffn_norm: str = "post_attention_layernorm", **more: str
) -> Tensors:
    """The norms of a stack's layers: parameter -> module in the checkpoint."""
    modules = {"attention_norm": attention_norm, "ffn_norm": ffn_norm, **more}
    return {f"{stack}/{name}/scale": Stored(f"{LAYER}.{module}.weight") for name, module in modules.items()}


def attention(
    stack: str, *, bias: bool = False, out_bias: bool = False, qk_norm: bool = False, sinks: bool = False
) -> Tensors:
    """The attention of a stack's layers, with the parts that `rl.models.layers.Attention` was made with."""
    module = f"{LAYER}.self_attn"
    found = {name: Stored(f"{module}.{name}_proj.weight", transposed=True) for name in "qkvo"}
    biased = ("qkv" if bias else "") + ("o" if out_bias else "")
    found |= {f"{name}_bias": Stored(f"{module}.{name}_proj.bias") for name in biased}
    if qk_norm:
        found |= {f"{name}_norm/scale": Stored(f"{module}.{name}_norm.weight") for name in "qk"}
    if sinks:
        found |= {"sinks": Stored(f"{module}.sinks")}
    return {f"{stack}/attention/{name}": stored for name, stored in found.items()}


def swiglu(stack: str, inner: str = "ffn", module: str = "mlp", *, bias: bool = False) -> Tensors:
    """A gated feed-forward layer; `inner` is its place in the parameters, `module` in the checkpoint."""
    names = ("gate", "up", "down")
    found = {name: Stored(f"{LAYER}.{module}.{name}_proj.weight", transposed=True) for name in names}
    if bias:
        found |= {f"{name}_bias": Stored(f"{LAYER}.{module}.{name}_proj.bias") for name in names}
    return {f"{stack}/{inner}/{name}": stored for name, stored in found.items()}
