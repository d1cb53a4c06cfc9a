"""What SGLang takes for granted of PyTorch, and a CPU does not have.

Two operators of torchvision's compiled part are declared: its CPU build lacks them, and its Python side expects them.
Memory that is to be pinned stays as it is where there is no accelerator to copy it to: SGLang's adapters pin what they
keep on the host, and PyTorch then refuses to make it at all.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

for _name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _unpinned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @wraps(make)
    def made(*args: Any, **settings: Any) -> torch.Tensor:
        settings.pop("pin_memory", None)
        return make(*args, **settings)

    return made


def _as_it_is(tensor: torch.Tensor, device: object = None) -> torch.Tensor:
    return tensor


if not torch.accelerator.is_available():
    torch.tensor, torch.zeros = _unpinned(torch.tensor), _unpinned(torch.zeros)
    torch.Tensor.pin_memory = _as_it_is  # type: ignore[method-assign,assignment]
