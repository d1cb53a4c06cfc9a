"""Algorithms: values made of pure functions. `ALGORITHMS` maps the name in a config to its factory."""

from collections.abc import Callable, Mapping

from rl.algorithms.base import Algorithm, TokenLoss
from rl.algorithms.grpo import dr_grpo, grpo, rloo
from rl.algorithms.supervised import supervised

ALGORITHMS: Mapping[str, Callable[..., Algorithm]] = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}

__all__ = ["ALGORITHMS", "Algorithm", "TokenLoss", "dr_grpo", "grpo", "rloo", "supervised"]
