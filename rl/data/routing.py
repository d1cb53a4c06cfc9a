"""`Routing` to arrays and back: a byte or two for each expert of a token."""

import numpy as np
from jaxtyping import Int, UInt

from envs.types import Routing


def recorded(experts: UInt[np.ndarray, "T layers k"], first: int = 0) -> Routing:
    """The record of choices, in as few bytes as their dtype has.

    Args:
        experts: of one or two bytes.
        first: number of the first token within its sequence.
    """
    tokens, layers, each = experts.shape
    return Routing(first, (tokens, layers, each), experts.astype(experts.dtype.newbyteorder("<")).tobytes())


def choices(routing: Routing) -> Int[np.ndarray, "T layers k"]:
    """What was recorded, with room for -1: int16.

    Raises:
        ValueError: when there are more or fewer bytes than the shape says.
    """
    count = int(np.prod(routing.shape))
    size = len(routing.choices) // max(count, 1)
    if (count and size not in (1, 2)) or len(routing.choices) != size * count:
        raise ValueError(f"a routing of shape {routing.shape} has {len(routing.choices)} bytes; expected 1 or 2 each")
    flat = np.frombuffer(routing.choices, "<u2" if size == 2 else np.uint8)
    return flat.astype(np.int16).reshape(routing.shape)
