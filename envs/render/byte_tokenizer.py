"""The chat format of our own small models for tools that ask for a tokenizer and a chat template."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from envs.render.byte import ByteRenderer
from envs.tokenizer import Tokenizer, needed

if TYPE_CHECKING:
    import tokenizers

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def byte_tokenizer(merges: Sequence[tuple[str, str]] = ()) -> Tokenizer:
    """Gives texts and conversations the ids that `ByteRenderer` gives them, or `SubwordRenderer` with these merges.

    Raises:
        ConfigError: when the package `tokenizers` is not installed.
    """
    special = [ByteRenderer().text([token]) for token in range(256, ByteRenderer.vocab_size)]
    backend = byte_level(merges, special)
    backend.add_special_tokens(special)
    (end,) = ByteRenderer.stop_ids
    return Tokenizer(
        backend,
        "the byte format",
        eos_token=special[end - 256],
        end_ids=ByteRenderer.stop_ids,
        templates={"default": TEMPLATE},
    )


def byte_level(merges: Sequence[tuple[str, str]], special: Sequence[str] = ()) -> "tokenizers.Tokenizer":
    """Text to the ids of bytes and of the pieces that they are merged into; `special` take the ids from 256 on.

    Raises:
        ConfigError: when the package `tokenizers` is not installed.
    """
    hf = needed("tokenizers")
    ids = {letter: byte for byte, letter in enumerate(letters())}
    ids |= {name: 256 + number for number, name in enumerate(special)}
    ids |= {"".join(pair): ByteRenderer.vocab_size + number for number, pair in enumerate(merges)}
    backend = hf.Tokenizer(hf.models.BPE(ids, list(merges)))
    cut = hf.pre_tokenizers
    backend.pre_tokenizer = cut.Sequence([cut.Digits(individual_digits=True), cut.ByteLevel(add_prefix_space=False)])
    backend.decoder = hf.decoders.ByteLevel()
    return backend


def letters() -> list[str]:
    """The letter that byte-level tokenizers write for each byte: itself if it can be seen, else one beyond Latin-1.

    Radford et al. 2019 (GPT-2), `bytes_to_unicode`.
    """
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte if byte in seen else 256 + hidden.index(byte)) for byte in range(256)]
