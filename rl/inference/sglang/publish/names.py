"""Whether a server has a place for every tensor, and gets one for every place.

SGLang's loaders take a tensor whose name they do not know with success, and say nothing of one that never came. So the
names are compared before the first publication. A server keeps some tensors together under another name; what
`/weights_checker` lists are its own names, and the table here is that of `stacked_params_mapping` and
`make_expert_params_mapping` in `sglang/srt/models`, 0.5.23, the same for all families of `rl.models`.
"""

import hashlib
import re
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from envs.errors import ConfigError

FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
"""Modules that are one matrix in a server."""

EXPERTS = {"gate_proj": "w13", "up_proj": "w13", "gate_up_proj": "w13", "down_proj": "w2"}
"""The same for the matrices of all experts of a layer."""

EXPERT = re.compile(r"(.*\.experts\.)(?:\d+\.)?(gate_proj|up_proj|gate_up_proj|down_proj)(?:\.weight)?(_bias)?")

DERIVED = re.compile(r".*(rotary_emb|inv_freq|cos_sin_cache|embed_scale|normalizer|[kv]_scale|input_scale).*")
"""What servers work out for themselves, or learn from elsewhere."""

BESIDE_ADAPTERS = ".base_layer."
"""What is in the name of a matrix that a server can hold adapters beside."""

VOCABULARY, PADDED = ("model.embed_tokens.weight", "lm_head.weight"), 64
"""What a server adds rows of zeros to, and of how many there is a multiple then."""

SHOWN = 8


def server_name(name: str) -> str:
    """What a server calls the parameter that a tensor becomes part of.

    Args:
        name: as Hugging Face has it.
    """
    if expert := EXPERT.fullmatch(name):
        return f"{expert[1]}{EXPERTS[expert[2]]}_weight{expert[3] or ''}"
    module, dot, kind = name.rpartition(".")
    above, also, last = module.rpartition(".")
    return f"{above}{also}{FUSED.get(last, last)}{dot}{kind}"


def check_names(names: Iterable[str], found: Collection[str], url: str) -> None:
    """Compares what would be sent with what a server has.

    Args:
        names: of the tensors that would be sent.
        found: the server's own parameters, as `/weights_checker` lists them.
        url: of the server.

    Raises:
        ConfigError: naming those that only one side has.
    """
    ours, theirs = {server_name(name) for name in names}, {name.replace(BESIDE_ADAPTERS, ".") for name in found}
    unknown = sorted(ours - theirs)
    missing = sorted(name for name in theirs - ours if not DERIVED.fullmatch(name))
    problems = [f"it has no {_first(unknown)}, which would be sent"] if unknown else []
    problems += [f"nothing would be sent for its {_first(missing)}"] if missing else []
    if problems:
        raise ConfigError(
            f"the server at {url} does not hold the model that is trained: {'; '.join(problems)}. It would take them "
            "without complaint and sample from something else; start it with this model"
        )


def checksums(tensors: Iterable[tuple[str, np.ndarray]]) -> dict[str, str]:
    """What `/weights_checker` of a server on a CPU, all of whose weights are in one process, says after these were
    published: SHA-256 of a parameter's bytes, the first eight of it. Not for experts.

    Args:
        tensors: name and numbers, in the order of the layers: q, k and v after one another, as are gate and up.
    """
    found: dict[str, Any] = {}
    for name, tensor in tensors:
        if name in VOCABULARY:
            tensor = np.pad(tensor, ((0, -len(tensor) % PADDED), (0, 0)))
        found.setdefault(server_name(name), hashlib.sha256()).update(
            np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
        )
    return {name: digest.hexdigest()[:16] for name, digest in found.items()}


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
