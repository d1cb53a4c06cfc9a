"""Which devices JAX may use. To be settled before anything else touches JAX."""

import hashlib
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

import jax

from envs.errors import ConfigError
from rl.machine import cpu_model

PLATFORMS = ("cpu", "gpu", "tpu")


def use_platform(platform: str, mesh: Mapping[str, int]) -> None:
    """Restricts JAX to one kind of device. On the CPU, makes as many pretended devices as the mesh asks for.

    Without this, JAX would look for TPUs and GPUs first, slowly and loudly.

    Raises:
        ConfigError: for another platform, or one that this installation of JAX cannot use.
    """
    if platform not in PLATFORMS:
        raise ConfigError(f"hardware.platform is '{platform}'; expected one of {', '.join(PLATFORMS)}")
    _keep_compiled_programs()
    names = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
    jax.config.update("jax_platforms", names[platform])
    devices = prod(size for size in mesh.values() if size > 0)
    if platform == "cpu" and devices > 1 and not _has_devices(devices):
        jax.config.update("jax_num_cpu_devices", devices)
    try:
        found = jax.devices()[0].platform
    except RuntimeError as error:
        extra = {"gpu": "cuda", "tpu": "tpu"}.get(platform, "")
        raise ConfigError(
            f"hardware.platform={platform} cannot be used here: {error}; install it with "
            f"pip install 'upswing[{extra}]', or choose hardware=cpu"
        ) from error
    if found != platform:
        raise ConfigError(f"hardware.platform={platform}, but JAX runs on {found}; choose hardware=cpu or start anew")


def _keep_compiled_programs() -> None:
    """Keeps what XLA compiles for the next process: resumed runs, sweeps and repeated runs begin at once.

    In `~/.cache/upswing`, a folder per kind of processor, because what was compiled for one need not run on another.
    `JAX_COMPILATION_CACHE_DIR` names another place.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "upswing" / "xla" / hashlib.sha256(cpu_model().encode()).hexdigest()[:12]
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _has_devices(count: int) -> bool:
    """Whether JAX has been started already (by a sweep's earlier run) with at least this many devices."""
    return jax.extend.backend.backends_are_initialized() and len(jax.devices()) >= count  # type: ignore[attr-defined]
