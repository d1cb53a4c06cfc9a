"""Algorithms: values made of pure functions. `ALGORITHMS` maps the name in a config to its factory."""

from rl.algorithms.base import Algorithm, Outcomes, TokenLoss
from rl.algorithms.named import ALGORITHMS, dr_grpo, grpo, rloo
from rl.algorithms.supervised import supervised

__all__ = ["ALGORITHMS", "Algorithm", "Outcomes", "TokenLoss", "dr_grpo", "grpo", "rloo", "supervised"]
