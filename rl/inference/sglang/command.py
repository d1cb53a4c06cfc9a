"""How an SGLang server and its router are started: values in, a command line and its environment out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from envs.errors import ConfigError, unknown_name

Argument = str | int | float | bool | Sequence[str] | None
"""Of a flag. True is the bare flag; False or None leaves it out; a list is its words after one another."""

PLATFORMS = ("cpu", "cuda")

SHIMS = Path(__file__).parent / "shims"
"""Put before everything else on a CPU: what SGLang's package from PyPI needs there, and does not find."""

ENVIRONMENT = ".venv-sglang"
"""What `make sglang` builds."""

_SHIMMED: dict[str, dict[str, str]] = {"cpu": {"PYTHONPATH": str(SHIMS)}, "cuda": {}}

_OF_THE_TRAINER = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"})

# The CPU's own default backend wants AMX; graphs and overlapping are for GPUs. The token count is what 2 GB hold of a
# small model, and far more than a machine without a GPU decodes at once. An idle scheduler would spin, and take a core
# from the trainer.
_CPU: dict[str, Argument] = {
    "device": "cpu",
    "attention-backend": "torch_native",
    "disable-cuda-graph": True,
    "disable-overlap-schedule": True,
    "sleep-on-idle": True,
    "max-total-tokens": 16384,
    "max-running-requests": 64,
    "mem-fraction-static": 0.3,
}


class Command(NamedTuple):
    """A program to start.

    Attributes:
        argv: the command line.
        settings: variables it gets on top of those it inherits.
    """

    argv: tuple[str, ...]
    settings: Mapping[str, str]

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """All its variables. What steers the trainer's Python would lead another Python astray, and stays behind."""
        return {k: v for k, v in inherited.items() if k not in _OF_THE_TRAINER} | dict(self.settings)


def find_python(folder: Path | None = None) -> Path:
    """The Python that has SGLang.

    Args:
        folder: a virtual environment; None: `.venv-sglang` here, or beside the sources.

    Raises:
        ConfigError: when there is none.
    """
    places = [folder] if folder is not None else [Path(ENVIRONMENT), Path(__file__).parents[3] / ENVIRONMENT]
    for place in places:
        python = place / "bin" / "python"
        if python.exists():
            return python.absolute()  # not resolved: that would leave the virtual environment
    raise ConfigError(
        f"there is no SGLang in {' or '.join(map(str, places))} (no bin/python); build {ENVIRONMENT} with: make sglang"
    )


def check_model(model: Path) -> None:
    """Says at once what the server would say after half a minute.

    Raises:
        ConfigError: when the folder is no model.
    """
    if not (model / "config.json").is_file():
        found = "there is no such folder" if not model.is_dir() else "it has no config.json"
        raise ConfigError(
            f"SGLang cannot serve {model}: {found}; expected a Hugging Face directory, as rl export writes"
        )


def server_command(
    python: Path,
    model: Path,
    *,
    port: int,
    host: str = "127.0.0.1",
    platform: str = "cpu",
    dtype: str = "float32",
    tensor_parallel: int = 1,
    data_parallel: int = 1,
    memory_fraction: float | None = None,
    index: int = 0,
    threads: int = 1,
    arguments: Mapping[str, Argument] | None = None,
) -> Command:
    """One SGLang server.

    Args:
        python: of the environment that has SGLang.
        model: a Hugging Face directory.
        port: where it listens.
        host: on which network interface.
        platform: "cpu" or "cuda".
        dtype: of weights and activations.
        tensor_parallel: GPUs that share each layer.
        data_parallel: copies of the model in one server.
        memory_fraction: share of the device's memory for weights and cache; None: SGLang's choice (0.3 on a CPU).
        index: which of several servers on this machine: on GPUs, each takes the next `tensor_parallel * data_parallel`,
            from `base-gpu-id` in `arguments` on.
        threads: OpenMP threads on a CPU. With two on two cores, SGLang draws one token a second.
        arguments: further flags by their name, with or without dashes in front; they override those above.

    Raises:
        ConfigError: for a platform there is none of.
    """
    if platform not in PLATFORMS:
        raise unknown_name("inference.platform", platform, PLATFORMS)
    flags: dict[str, Argument] = {"model-path": str(model), "host": host, "port": port, "dtype": dtype}
    settings = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if platform == "cpu":
        flags |= _CPU
        settings |= {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": str(threads), **_SHIMMED["cpu"]}
    else:
        flags["base-gpu-id"] = index * tensor_parallel * data_parallel
    if tensor_parallel != 1:
        flags["tensor-parallel-size"] = tensor_parallel
    if data_parallel != 1:
        flags["data-parallel-size"] = data_parallel
    if memory_fraction is not None:
        flags["mem-fraction-static"] = memory_fraction
    given = {name.lstrip("-").replace("_", "-"): value for name, value in (arguments or {}).items()}
    first = given.pop("base-gpu-id", None)
    if first is not None and platform == "cuda":
        flags["base-gpu-id"] = int(str(first)) + index * tensor_parallel * data_parallel
    flags |= given
    return Command((str(python), "-m", "sglang.launch_server", *_words(flags)), settings)


def router_command(
    python: Path,
    *,
    port: int,
    metrics_port: int,
    host: str = "127.0.0.1",
    platform: str = "cpu",
    arguments: Mapping[str, Argument] | None = None,
) -> Command:
    """SGLang's router, with no server behind it yet: `Router.add` brings them.

    It only carries requests: whose key it has seen goes where the last one went (policy `manual`). Whether a server is
    fit to answer is for the fleet to say (one that came back may be healthy and have old weights), so the router's own
    checks are off; and so are its retries, which would draw twice for one request.

    Args:
        python: of the environment that has the router.
        port: where it listens.
        metrics_port: where it shows its counters; it insists on a port for them.
        host: on which network interface.
        platform: "cpu" or "cuda": it imports some of SGLang, which needs its shims on a CPU.
        arguments: further flags by their name; they override those above.

    Raises:
        ConfigError: for a platform there is none of.
    """
    if platform not in PLATFORMS:
        raise unknown_name("inference.platform", platform, PLATFORMS)
    flags: dict[str, Argument] = {
        "host": host,
        "port": port,
        "prometheus-host": host,
        "prometheus-port": metrics_port,
        "policy": "manual",
        "assignment-mode": "min_load",
        "disable-retries": True,
        "disable-circuit-breaker": True,
        "disable-health-check": True,
        "log-level": "warn",
    }
    flags |= {name.lstrip("-").replace("_", "-"): value for name, value in (arguments or {}).items()}
    return Command((str(python), "-m", "sglang_router.launch_router", *_words(flags)), _SHIMMED[platform])


def _words(flags: Mapping[str, Argument]) -> Sequence[str]:
    """Flags as words of a command line."""
    words: list[str] = []
    for name, value in flags.items():
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [f"--{name}", *map(str, value)]
        elif value is not None and value is not False:
            words += [f"--{name}", str(value)]
    return words
