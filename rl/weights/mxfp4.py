"""Reads what is stored in MXFP4, as gpt-oss publishes its experts: 4-bit floats, 32 of them to a shared exponent.

Format: OCP Microscaling Formats (MX) Specification v1.0, sections 5.3.3 (E2M1) and 5.4.1 (E8M0); laid out as by
transformers: `NAME_blocks [E, outputs, inputs / 32, 16]`, two numbers to a byte, the lower half first, and
`NAME_scales [E, outputs, inputs / 32]` stand for `NAME [E, inputs, outputs]`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rl.weights.safetensors_dir import SafetensorsDirectory
from rl.weights.source import TensorInfo

BLOCKS, SCALES = "_blocks", "_scales"

HALVES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([HALVES, -HALVES])
"""The sixteen numbers that there are."""

BIAS = 127
"""Of the shared exponents."""


class UnpackedMxfp4:
    """A directory as if its packed tensors were stored in bfloat16, which holds every such number exactly.

    Attributes:
        directory: as it is.
    """

    def __init__(self, directory: SafetensorsDirectory) -> None:
        self.directory = directory
        self._packed: dict[str, TensorInfo] = {}
        for name, (shape, dtype) in directory.tensors.items():
            whole = name.removesuffix(BLOCKS)
            scales = directory.tensors.get(whole + SCALES)
            if whole != name and len(shape) == 4 and scales == TensorInfo(shape[:3], "uint8") and dtype == "uint8":
                experts, outputs, blocks, half = shape
                self._packed[whole] = TensorInfo((experts, blocks * half * 2, outputs), "bfloat16")
        halves = {whole + part for whole in self._packed for part in (BLOCKS, SCALES)}
        self._tensors = {name: info for name, info in directory.tensors.items() if name not in halves} | self._packed

    @property
    def path(self) -> Path:
        return self.directory.path

    @property
    def config(self) -> Mapping[str, Any]:
        return {key: value for key, value in self.directory.config.items() if key != "quantization_config"}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def read(self, name: str) -> np.ndarray:
        if name not in self._packed:
            return self.directory.read(name)
        blocks, scales = self.directory.read(name + BLOCKS), self.directory.read(name + SCALES)
        whole = np.empty(self._packed[name].shape, ml_dtypes.bfloat16)
        for expert in range(len(whole)):  # one at a time: on the way the numbers take four times the room
            whole[expert] = unpacked(blocks[expert], scales[expert]).T
        return whole


def unpacked(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The numbers, in float32.

    Args:
        blocks: `[..., n, 16]` uint8.
        scales: `[..., n]` uint8; each says with which power of two its 32 numbers are multiplied, 127 is none.

    Returns:
        `[..., n * 32]`.
    """
    pairs = np.stack([E2M1[blocks & 15], E2M1[blocks >> 4]], axis=-1)
    numbers = pairs.reshape(*blocks.shape[:-1], -1)
    np.ldexp(numbers, scales.astype(np.int32)[..., None] - BIAS, out=numbers)
    return numbers.reshape(*blocks.shape[:-2], -1)
