"""Upswing's trainer: pure RL updates in JAX, rollouts from an engine, experiments through Hydra."""

__version__ = "0.1.0"
