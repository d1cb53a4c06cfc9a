"""The chat format of our own small models with a learned vocabulary: frequent pieces of text are a token each."""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.errors import ConfigError
from envs.render.byte import ByteRenderer
from envs.render.byte_tokenizer import byte_level, letters
from envs.tokenizer import needed

if TYPE_CHECKING:
    import tokenizers

Merges = tuple[tuple[str, str], ...]
"""Which two pieces make the next one, in the letters that byte-level tokenizers write for bytes."""

FILE = "vocabulary.json"
"""What the file in a run's directory is called."""


class SubwordRenderer(ByteRenderer):
    """`ByteRenderer`, with pieces of text as further tokens: byte-pair encoding (Sennrich et al., arXiv:1508.07909).

    Ids 0-263 are those of `ByteRenderer`, so there is still no text that cannot be written; 264 and up are pieces, in
    the order in which they were learned. A piece lies within a word (GPT-2's rule), a digit or a run of punctuation, so
    that a name has the same tokens wherever it stands between other signs.

    Args:
        merges: which two pieces make the next one.
        describe_tools: as for `ByteRenderer`.

    Raises:
        ConfigError: when the package `tokenizers` is not installed.
    """

    def __init__(self, merges: Merges, *, describe_tools: bool = True) -> None:
        super().__init__(describe_tools=describe_tools)
        self.merges = merges
        self.vocab_size = ByteRenderer.vocab_size + len(self.merges)
        self._pieces = ["".join(pair) for pair in self.merges]

    def encode(self, text: str) -> list[int]:
        try:
            return list(self._backend.encode(text).ids)
        except (UnicodeError, TypeError):  # half of a surrogate pair, which the library does not take
            return super().encode(text)

    @cached_property
    def _backend(self) -> "tokenizers.Tokenizer":
        return byte_level(self.merges)

    @cached_property
    def _bytes(self) -> list[bytes]:
        byte_of = {letter: byte for byte, letter in enumerate(letters())}
        return [bytes(byte_of[letter] for letter in piece) for piece in self._pieces]

    def _spell(self, token: int) -> bytes:
        piece = token - ByteRenderer.vocab_size
        return self._bytes[piece] if piece >= 0 else super()._spell(token)


def learn_vocabulary(texts: Iterable[str], size: int) -> Merges:
    """What makes the most frequent pieces of some texts; the same for the same texts.

    Args:
        texts: what to learn from.
        size: the most tokens it may have, the 264 of `ByteRenderer` included.

    Raises:
        ConfigError: for a size that leaves nothing to learn, or when the package `tokenizers` is not installed.
    """
    if size <= ByteRenderer.vocab_size:
        raise ConfigError(f"a vocabulary of {size} tokens; expected more than the {ByteRenderer.vocab_size} of bytes")
    hf = needed("tokenizers")
    backend = byte_level(())
    trainer = hf.trainers.BpeTrainer(
        vocab_size=size - ByteRenderer.vocab_size + 256, initial_alphabet=letters(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return _merges(json.loads(backend.to_str())["model"]["merges"])


def keep_vocabulary(merges: Merges, run: Path) -> None:
    """Writes what `read_vocabulary` reads into a run's directory.

    Raises:
        ConfigError: when the run has another one already: its weights would not understand this one.
    """
    if not (run / FILE).is_file():
        lines = ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in merges)
        (run / FILE).write_text(f'{{"merges": [\n{lines}\n]}}\n', "utf-8")
    elif read_vocabulary(run) != merges:
        raise ConfigError(
            f"{run / FILE} is not the vocabulary that the demonstrations give now: the environment, or something it is "
            "made of, has changed since the run began; begin another run"
        )


def read_vocabulary(folder: Path) -> Merges:
    """The vocabulary of a run.

    Raises:
        ConfigError: when its file is none.
    """
    try:
        return _merges(json.loads((folder / FILE).read_text("utf-8"))["merges"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / FILE} cannot be read ({type(error).__name__}: {error}); a run writes it when it begins"
        ) from error


def _merges(found: Any) -> Merges:
    """Pairs of pieces; each must be made of what came before it."""
    known, merges = set(letters()), []
    for left, right in (pair.split(" ") if isinstance(pair, str) else pair for pair in found):
        if left not in known or right not in known:
            raise ValueError(f"the pair {left!r}, {right!r} is made of pieces that do not come before it")
        known.add(left + right)
        merges.append((left, right))
    return tuple(merges)
