"""A GGUF file, as llama.cpp keeps models, under the names and in the shapes of Hugging Face.

Names and numbers are turned back as llama.cpp's `convert_hf_to_gguf.py` turned them. Quantised tensors are read as
float32, whatever the `gguf` package can dequantise (Q4_1, Q8_0, the K quants …).
"""

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.errors import ConfigError, UpswingError, unknown_name
from envs.gguf import GGUFHead, read_gguf_head
from rl.models.rope import Rope
from rl.weights.source import TensorInfo, family_of, package, read_tensor, shape_of

KINDS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "qwen3moe": {"model_type": "qwen3_moe", "norm_topk_prob": True},
}
"""The architectures that are read, and what `config.json` says of each whatever the file says."""

KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
"""Keys of `config.json` and those of a file's metadata, without their architecture."""

TOKENS = {name: f"tokenizer.ggml.{key}_token_id" for name, key in (
    ("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")
)}  # fmt: skip

ROPE_FREQS = "rope_freqs.weight"
"""What llama.cpp makes of Llama 3's way of stretching positions: a divisor for each pair."""

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class _Part(NamedTuple):
    """The bytes of a tensor, or of one expert's share of it."""

    kind: int
    shape: tuple[int, ...]
    offset: int
    size: int


class GGUFFile:
    """Reads a file, tensor by tensor.

    Raises:
        ConfigError: for an architecture that is not read here.
        UpswingError: when the file is damaged or ends too early.
    """

    def __init__(self, path: Path) -> None:
        self._head = read_gguf_head(path)
        self._architecture = self._head.metadata.get("general.architecture", "none")
        if self._architecture not in KINDS:
            raise unknown_name(f"GGUF architecture of {path}", self._architecture, KINDS)
        self._config = _config(self._head, self._architecture)
        self._parts = _parts(self._head, self._names())
        self._tensors = {name: TensorInfo(part.shape, _dtype(part.kind)) for name, part in self._parts.items()}

    @property
    def path(self) -> Path:
        return self._head.path

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def read(self, name: str) -> np.ndarray:
        tensor = _read(self.path, self._parts[name])
        if self._architecture == "llama" and (heads := _heads(name, self._config)):
            # llama.cpp turns neighbouring numbers of a head, Hugging Face its halves.
            pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
            tensor = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.shape)
        return tensor

    def _names(self) -> dict[str, str]:
        """Hugging Face's names by llama.cpp's, those of layers by the name in the first layer."""
        table = family_of(self).tensors(shape_of(self))
        gguf = package("gguf")
        number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self._architecture)
        known = gguf.get_tensor_name_map(number, 1)
        found = {}
        for stored in table.values():
            plain = stored.name.replace(".{expert}", "").format(layer=0)
            if name := known.get_name(plain, try_suffixes=(".weight", ".bias")):
                found[name] = stored.name
        return found


def _config(head: GGUFHead, architecture: str) -> dict[str, Any]:
    """`config.json` out of the metadata."""
    metadata, tensors = head.metadata, head.tensors
    if "token_embd.weight" not in tensors:
        raise ConfigError(f"{head.path} has no token embeddings; expected a whole model, not a part of one")
    config = {
        name: _number(metadata[f"{architecture}.{key}"], head.path, key)
        for name, key in KEYS.items()
        if f"{architecture}.{key}" in metadata
    }
    config |= {name: metadata[key] for name, key in TOKENS.items() if key in metadata}
    config |= {
        **KINDS[architecture],
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if "head_dim" not in config and f"{architecture}.rope.dimension_count" in metadata:
        config["head_dim"] = metadata[f"{architecture}.rope.dimension_count"]
    if scaling := _stretch(head, architecture, config):
        config["rope_scaling"] = scaling
    return config


def _number(value: Any, path: Path, key: str) -> Any:
    if isinstance(value, list):  # one per layer
        if len(set(value)) != 1:
            raise ConfigError(f"{path} says {key} for each layer, {value}; layers of one shape are supported here")
        value = value[0]
    # 1e-5 is kept as the nearest float32; its shortest name is what was meant.
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _stretch(head: GGUFHead, architecture: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """`rope_scaling`."""
    scaling = f"{architecture}.rope.scaling."
    kind = head.metadata.get(f"{scaling}type", "none")
    if kind != "none":
        given = {"rope_type": kind, "factor": head.metadata.get(f"{scaling}factor", 1.0)}
        if original := head.metadata.get(f"{scaling}original_context_length"):
            given["original_max_position_embeddings"] = original
        return given
    if ROPE_FREQS not in head.tensors:
        return None
    tensor = head.tensors[ROPE_FREQS]
    divisors = _read(head.path, _Part(tensor.kind, tensor.shape, tensor.offset, _size(tensor.kind, tensor.shape)))
    rope = Rope(
        config["rope_theta"], stretch="llama3", factor=float(divisors.max()), original_context=8192, low_freq_factor=1.0
    )
    plain, stretched = (r.frequencies(2 * len(divisors))[0] for r in (Rope(config["rope_theta"]), rope))
    if not np.allclose(plain / stretched, divisors, rtol=1e-4):
        raise ConfigError(f"{head.path}: {ROPE_FREQS} is not what Llama 3 has for a factor of {rope.factor:g}")
    return {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_context,
    }


def _parts(head: GGUFHead, names: Mapping[str, str]) -> dict[str, _Part]:
    """Where the tensors lie, by the name of Hugging Face; those that have none keep the file's."""
    end = head.path.stat().st_size
    parts = {}
    for name, (shape, kind, offset) in head.tensors.items():
        if name == ROPE_FREQS:
            continue
        size = _size(kind, shape)
        if offset + size > end:
            raise UpswingError(
                f"{head.path} is cut short: {name} ends at byte {offset + size}, the file at {end}; download it again"
            )
        layer = re.match(r"blk\.(\d+)\.", name)
        stored = names.get(name if layer is None else f"blk.0.{name[layer.end() :]}", name)
        number = 0 if layer is None else int(layer[1])
        if "{expert}" in stored:
            each = size // shape[0]
            for expert in range(shape[0]):
                part = _Part(kind, shape[1:], offset + expert * each, each)
                parts[stored.format(layer=number, expert=expert)] = part
        else:
            parts[stored.format(layer=number)] = _Part(kind, shape, offset, size)
    return parts


def _read(path: Path, part: _Part) -> np.ndarray:
    gguf = package("gguf")
    plain = PLAIN.get(gguf.GGMLQuantizationType(part.kind).name)
    if plain is not None:
        return read_tensor(path, part.offset, part.shape, np.dtype(plain))
    rows = read_tensor(
        path, part.offset, (prod(part.shape[:-1]), part.size // prod(part.shape[:-1])), np.dtype("uint8")
    )
    found: np.ndarray = gguf.dequantize(rows, gguf.GGMLQuantizationType(part.kind)).reshape(part.shape)
    return found


def _size(kind: int, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    gguf = package("gguf")
    try:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except ValueError as error:
        raise UpswingError(
            f"a tensor has GGUF's type {kind}, which the installed package gguf does not know"
        ) from error
    return int(prod(shape) // block * size)


def _dtype(kind: int) -> str:
    """The dtype in which a tensor is read; the name of its type, if it cannot be."""
    gguf = package("gguf")
    name: str = gguf.GGMLQuantizationType(kind).name
    return PLAIN.get(name) or ("float32" if gguf.GGMLQuantizationType(kind) in gguf.quants._type_traits else name)


def _heads(name: str, config: Mapping[str, Any]) -> int | None:
    """How many heads a tensor's rows belong to that are turned by position; None if they are not."""
    if ".q_proj." in name:
        return int(config["num_attention_heads"])
    if ".k_proj." in name:
        return int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return None
