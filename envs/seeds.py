"""Randomness that depends on what is computed and never on when."""

from hashlib import blake2b


def derive_seed(*parts: int | str | None) -> int:
    """A seed in 0 … 2³¹ - 1 that is a function of `parts` alone: the same in every process, on every machine.

    31 bits, because every engine's seed field holds them.

    Raises:
        TypeError: for anything but int, str and None, whose text could change between versions of a library.
    """
    for part in parts:
        if type(part) not in _PARTS:
            raise TypeError(f"a seed derives from int, str and None; found {part!r} ({type(part).__name__})")
    digest = blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFF_FFFF


_PARTS = frozenset((int, str, type(None)))
