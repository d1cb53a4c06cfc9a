"""Where code that a model wrote runs: one protocol, one file per backend. Names load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.sandbox.base import Backend, Limits, Process, Result, Sandbox
    from envs.sandbox.bubblewrap import Bubblewrap
    from envs.sandbox.daytona import Daytona
    from envs.sandbox.docker import Docker
    from envs.sandbox.e2b import E2B
    from envs.sandbox.kubernetes import Kubernetes
    from envs.sandbox.modal import Modal
    from envs.sandbox.pool import SandboxPool
    from envs.sandbox.prime import Prime
    from envs.sandbox.subprocess import TrustedSubprocess

_HOME = {
    **dict.fromkeys(("Backend", "Limits", "Process", "Result", "Sandbox"), "envs.sandbox.base"),
    "Bubblewrap": "envs.sandbox.bubblewrap",
    "Daytona": "envs.sandbox.daytona",
    "Docker": "envs.sandbox.docker",
    "E2B": "envs.sandbox.e2b",
    "Kubernetes": "envs.sandbox.kubernetes",
    "Modal": "envs.sandbox.modal",
    "Prime": "envs.sandbox.prime",
    "SandboxPool": "envs.sandbox.pool",
    "TrustedSubprocess": "envs.sandbox.subprocess",
}

__all__ = [
    "E2B",
    "Backend",
    "Bubblewrap",
    "Daytona",
    "Docker",
    "Kubernetes",
    "Limits",
    "Modal",
    "Prime",
    "Process",
    "Result",
    "Sandbox",
    "SandboxPool",
    "TrustedSubprocess",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'envs.sandbox' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
