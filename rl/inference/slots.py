"""What each slot is to do next, in host arrays that requests are written into between dispatches."""

from typing import Any

import numpy as np

from rl.inference.decode import Slots
from rl.inference.requests import Request
from rl.inference.sampler import DrawSettings


def idle_slots(slots: int, vocabulary: int, max_stop_ids: int, max_biases: int) -> Slots:
    """Slots without anything to do."""

    def host(value: float, dtype: type[np.generic], *shape: int) -> Any:
        return np.full((slots, *shape), value, dtype)

    return Slots(
        tokens=host(0, np.int32),
        positions=host(0, np.int32),
        remaining=host(0, np.int32),
        stop_ids=host(-1, np.int32, max_stop_ids),
        stops_from=host(0, np.int32),
        settings=DrawSettings(
            temperature=host(1, np.float32),
            top_p=host(1, np.float32),
            top_k=host(0, np.int32),
            min_p=host(0, np.float32),
            seed=host(0, np.uint32),
            bias_ids=host(vocabulary, np.int32, max_biases),
            biases=host(0, np.float32, max_biases),
        ),
    )


def occupy(slots: Slots, slot: int, request: Request) -> None:
    """Has a slot draw for a request from the next dispatch on; the newest token is the first to be decoded."""
    sampling, settings = request.sampling, slots.settings
    newest = len(request.prompt) + len(request.ids) - 1
    slots.tokens[slot] = request.ids[-1] if request.ids else request.prompt[-1]
    slots.positions[slot] = newest
    slots.remaining[slot] = request.limit - len(request.ids)
    slots.stop_ids[slot, : len(sampling.stop_ids)] = sampling.stop_ids
    slots.stops_from[slot] = len(request.prompt) - 1 + sampling.min_tokens
    settings.temperature[slot] = sampling.temperature
    settings.top_p[slot] = sampling.top_p
    settings.top_k[slot] = sampling.top_k
    settings.min_p[slot] = sampling.min_p
    settings.seed[slot] = np.uint32(sampling.seed & 0xFFFFFFFF)
    settings.bias_ids[slot, : len(sampling.logit_bias)] = list(sampling.logit_bias)
    settings.biases[slot, : len(sampling.logit_bias)] = list(sampling.logit_bias.values())


def vacate(slots: Slots, slot: int, vocabulary: int) -> None:
    """Leaves a slot idle, asking for nothing that would cost the others time."""
    slots.remaining[slot] = 0
    slots.stop_ids[slot] = -1
    slots.stops_from[slot] = 0
    for values, idle in zip(slots.settings, (1, 1, 0, 0, 0, vocabulary, 0), strict=True):
        values[slot] = idle
