"""The chat format of our own small models for tools that ask for a tokenizer and a chat template."""

from envs.render.byte import ByteRenderer
from envs.tokenizer import Tokenizer, needed

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """Gives texts and conversations the ids that `ByteRenderer` gives them.

    Raises:
        ConfigError: when the package `tokenizers` is not installed.
    """
    hf = needed("tokenizers")
    renderer = ByteRenderer()
    backend = hf.Tokenizer(hf.models.BPE({letter: byte for byte, letter in enumerate(_letters())}, []))
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = hf.decoders.ByteLevel()
    special = [renderer.text([token]) for token in range(256, renderer.vocab_size)]
    backend.add_special_tokens(special)
    end = renderer.text(renderer.stop_ids)
    return Tokenizer(
        backend, "the byte format", eos_token=end, end_ids=renderer.stop_ids, templates={"default": TEMPLATE}
    )


def _letters() -> list[str]:
    """The letter that byte-level tokenizers write for each byte: itself if it can be seen, else one beyond Latin-1.

    Radford et al. 2019 (GPT-2), `bytes_to_unicode`.
    """
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte if byte in seen else 256 + hidden.index(byte)) for byte in range(256)]
