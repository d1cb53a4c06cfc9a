"""Tokenizers of open models: text to ids and back, as Hugging Face's `tokenizers` does it.

A tokenizer comes from a Hugging Face directory or from the metadata of a GGUF file; with it come the tokens that end a
message and the chat templates found there. `transformers` is asked only where a directory has no `tokenizer.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.errors import ConfigError
from envs.gguf import read_gguf_head

if TYPE_CHECKING:
    import tokenizers

_DIGITS_APART = r"\p{N}"
_UP_TO_THREE_DIGITS = r"\p{N}{1,3}"
# The pattern of GPT-4's tokenizer, which Llama 3, Qwen and GLM share but for their digits.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Split:
    """How a family cuts text before pairs are merged.

    Attributes:
        pattern: of the pieces; None takes GPT-2's own.
        digits: each digit is cut off first.
        whole_words: a piece that is a token stays one, whatever the merges say.
        nfc: text is composed (Unicode NFC) first.
    """

    pattern: str | None = None
    digits: bool = False
    whole_words: bool = False
    nfc: bool = False


_LLAMA_3 = _Split(_WORDS.format(digits=_UP_TO_THREE_DIGITS), whole_words=True)
_QWEN_2 = _Split(_WORDS.format(digits=_DIGITS_APART), nfc=True)
_SPLITS = {  # by GGUF's `tokenizer.ggml.pre`
    "gpt-2": _Split(),
    "default": _Split(),
    "smollm": _Split(digits=True),
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "qwen2": _QWEN_2,
    "deepseek-r1-qwen": _QWEN_2,
    "glm4": _Split(_WORDS.format(digits=_UP_TO_THREE_DIGITS)),
    "chatglm-bpe": _Split(_WORDS.format(digits=_UP_TO_THREE_DIGITS)),
    "gpt-4o": _Split(_GPT_4O),
}
_CONTROL, _USER_DEFINED = 3, 4  # GGUF's token types of what is never cut


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. It is also what the package `renderers` takes for a tokenizer.

    Attributes:
        backend: the tokenizer itself.
        name_or_path: where it came from.
        bos_token, eos_token, unk_token, pad_token: special tokens that chat templates ask for; "" where there is none.
        end_ids: tokens that end what a model writes, by the model's own files.
        templates: chat templates by name; "default" is the usual one.
    """

    backend: tokenizers.Tokenizer
    name_or_path: str
    bos_token: str = ""
    eos_token: str = ""
    unk_token: str = ""
    pad_token: str = ""
    end_ids: tuple[int, ...] = ()
    templates: Mapping[str, str] = field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; a model's own vocabulary may be padded beyond it."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The ids of a text. Special tokens that it spells out become themselves; none is added unless asked for."""
        return list(self.backend.encode(_whole(text), add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **_: Any) -> str:
        """The text of ids; ids that the tokenizer does not have spell nothing, half a character is U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def __call__(self, text: str, add_special_tokens: bool = False, **_: Any) -> dict[str, list[Any]]:
        """Ids with the span of characters that each was made of, in the form of Hugging Face's tokenizers."""
        encoded = self.backend.encode(_whole(text), add_special_tokens=add_special_tokens)
        return {"input_ids": list(encoded.ids), "offset_mapping": list(encoded.offsets)}

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of one token; None if there is no such token."""
        return self.backend.token_to_id(token)

    @property
    def eos_token_id(self) -> int | None:
        return self.convert_tokens_to_ids(self.eos_token) if self.eos_token else None

    @property
    def unk_token_id(self) -> int | None:
        return self.convert_tokens_to_ids(self.unk_token) if self.unk_token else None


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory or of a GGUF file.

    Raises:
        ConfigError: when there is none, or its kind is not known.
    """
    where = Path(path)
    if where.is_dir():
        return _from_directory(where)
    if where.suffix == ".gguf" and where.is_file():
        return _from_gguf(where)
    raise ConfigError(f"{where} holds no tokenizer: expected a Hugging Face directory or a .gguf file")


def needed(module: str) -> Any:
    """A module of the extra `models`, imported when it is first needed.

    Raises:
        ConfigError: when it, or something it needs, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"open models need the package '{error.name}', which is not installed; pip install 'upswing[models]'"
        ) from error


# Hugging Face directories


def _from_directory(path: Path) -> Tokenizer:
    config = read_json(path / "tokenizer_config.json")
    backend = _backend(path)
    for index, token in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        if backend.token_to_id(token["content"]) is None:
            backend.add_tokens([_added(**token)])
        if backend.token_to_id(token["content"]) != int(index):
            raise ConfigError(
                f"{path}: token {token['content']!r} has id {backend.token_to_id(token['content'])} in tokenizer.json "
                f"and {index} in tokenizer_config.json; the files do not belong together"
            )
    names = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    given = [read_json(path / file).get("eos_token_id") for file in ("generation_config.json", "config.json")]
    ends: int | list[int] = next((ids for ids in given if ids is not None), [])
    ids = [backend.token_to_id(names["eos_token"]), *(ends if isinstance(ends, list) else [ends])]
    return Tokenizer(
        backend,
        str(path),
        **names,
        end_ids=tuple(dict.fromkeys(i for i in ids if i is not None)),
        templates=_templates(path, config),
    )


def _backend(path: Path) -> tokenizers.Tokenizer:
    if (path / "tokenizer.json").is_file():
        backend = needed("tokenizers").Tokenizer.from_file(str(path / "tokenizer.json"))
    else:
        try:
            loaded = needed("transformers").AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
            backend = loaded.backend_tokenizer
        except (OSError, ValueError, AttributeError, ImportError) as error:
            raise ConfigError(
                f"{path} has no tokenizer.json, and no tokenizer could be made of its other files: {error}"
            ) from error
    backend.no_truncation()  # a file may ask for either, for the model's training
    backend.no_padding()
    return backend


def _templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; a file of its own wins over the configuration, as in Hugging Face's loader."""
    found = config.get("chat_template") or {}
    if isinstance(found, str):
        found = {"default": found}
    elif isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}
    files = {"default": path / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    return {**found, **{name: file.read_text("utf-8") for name, file in files.items() if file.is_file()}}


def _content(token: Any) -> str:
    """The text of a special token, which a file gives as text or as a record."""
    return token["content"] if isinstance(token, Mapping) else token or ""


def _added(content: str, **settings: Any) -> Any:
    return needed("tokenizers").AddedToken(content, **settings)


def _whole(text: str) -> str:
    """Text without halves of surrogate pairs, which have no bytes."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if it does not exist."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


# GGUF files


def _from_gguf(path: Path) -> Tokenizer:
    metadata = read_gguf_head(path).metadata

    def value(key: str) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}")

    kind, pre = value("model"), value("pre") or "default"
    if kind != "gpt2" or pre not in _SPLITS:
        raise ConfigError(
            f"{path}: its tokenizer is of kind {kind!r}, cut by {pre!r}; from GGUF we read byte-level BPE (kind "
            f"'gpt2') cut by one of {', '.join(sorted(_SPLITS))}; use the model's Hugging Face directory instead"
        )
    tokens: list[str] = value("tokens")
    backend = _byte_level_bpe(tokens, value("merges"), _SPLITS[pre])
    kinds = enumerate(value("token_type") or [])
    never_cut = [(tokens[i], kind == _CONTROL) for i, kind in kinds if kind in (_CONTROL, _USER_DEFINED)]
    backend.add_tokens([_added(content, special=special, normalized=False) for content, special in never_cut])

    def named(name: str) -> str:
        index = value(f"{name}_token_id")
        return "" if index is None else tokens[index]

    ends = (value(f"{name}_token_id") for name in ("eos", "eot", "eom"))
    template = "tokenizer.chat_template"
    templates = {
        key.removeprefix(template).removeprefix(".") or "default": text
        for key, text in metadata.items()
        if key == template or key.startswith(f"{template}.")
    }
    return Tokenizer(
        backend,
        str(path),
        bos_token=named("bos"),
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding"),
        end_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        templates=templates,
    )


def _byte_level_bpe(tokens: Sequence[str], merges: Sequence[str], split: _Split) -> tokenizers.Tokenizer:
    hf = needed("tokenizers")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = hf.Tokenizer(hf.models.BPE(vocabulary, pairs, ignore_merges=split.whole_words))
    if split.nfc:
        backend.normalizer = hf.normalizers.NFC()
    steps: list[Any] = []
    if split.digits:
        steps.append(hf.pre_tokenizers.Digits(individual_digits=True))
    if split.pattern is not None:
        steps.append(hf.pre_tokenizers.Split(hf.Regex(split.pattern), "isolated"))
    steps.append(hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None))
    backend.pre_tokenizer = hf.pre_tokenizers.Sequence(steps)
    backend.decoder = hf.decoders.ByteLevel()
    return backend
