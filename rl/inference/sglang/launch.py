"""Fleets: of servers started here, or of servers at given URLs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from envs.errors import ConfigError
from rl.inference.sglang.command import Argument, check_model, router_command, server_command
from rl.inference.sglang.fleet import Fleet, Revival
from rl.inference.sglang.ports import take_ports
from rl.inference.sglang.router import LIVE, Router
from rl.inference.sglang.server import Attached, Launched, Patience, Report


def launched(
    python: Path,
    model: Path,
    logs: Path,
    *,
    servers: int = 1,
    port: int = 0,
    host: str = "127.0.0.1",
    platform: str = "cpu",
    dtype: str = "float32",
    tensor_parallel: int = 1,
    data_parallel: int = 1,
    memory_fraction: float | None = None,
    arguments: Mapping[str, Argument] | None = None,
    patience: Patience = Patience(),
    revival: Revival = Revival(),
    report: Report = print,
) -> Fleet:
    """Servers of one model on this machine, behind a router if there are several. `Fleet.start` starts them.

    Args:
        python: of the environment that has SGLang; see `command.find_python`.
        model: a Hugging Face directory.
        logs: folder for their log files, `server-0.log` …, `router.log`.
        servers: how many.
        port: the first one's; the others have the next ones. 0: any that are free.
        host: on which network interface they listen.
        patience: how long to wait for what.
        revival: how failed ones are started again.
        report: is told, in a sentence, how things stand.

    The others are `server_command`'s.

    Raises:
        ConfigError: when there is no such model, a port is taken, or a value makes no sense.
    """
    if servers < 1:
        raise ConfigError(f"servers is {servers}; expected 1 or more")
    check_model(model)
    started = [
        Launched(
            f"server {index}",
            f"http://{host}:{number}",
            server_command(
                python,
                model,
                port=number,
                host=host,
                platform=platform,
                dtype=dtype,
                tensor_parallel=tensor_parallel,
                data_parallel=data_parallel,
                memory_fraction=memory_fraction,
                index=index,
                arguments=arguments,
            ),
            logs / f"server-{index}.log",
            patience,
        )
        for index, number in enumerate(take_ports(servers, port, host))
    ]
    router = None if servers == 1 else _router(python, logs, host, platform, patience)
    return Fleet(started, router=router, revival=revival, report=report)


def attached(
    urls: Sequence[str], *, patience: Patience = Patience(), revival: Revival = Revival(), report: Report = print
) -> Fleet:
    """Servers that somebody else started and starts again. Requests of a rollout go to one of them, by its key's hash.

    Args:
        urls: of the servers themselves, not of a router: each has to be given its weights.
        patience: how long to wait for what.
        revival: how often in a row they may be gone.
        report: is told, in a sentence, how things stand.

    Raises:
        ConfigError: for what is no URL, or is there twice.
    """
    plain = [url.rstrip("/") for url in urls]
    for url in plain:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"'{url}' is no URL of a server; expected http://HOST:PORT")
    if not plain or len(set(plain)) < len(plain):
        raise ConfigError(f"urls is {list(urls)}; expected the URL of each server once")
    return Fleet([Attached(f"the server at {url}", url, patience) for url in plain], revival=revival, report=report)


def _router(python: Path, logs: Path, host: str, platform: str, patience: Patience) -> Router:
    port, metrics = take_ports(2, 0, host)
    command = router_command(python, port=port, metrics_port=metrics, host=host, platform=platform)
    log = logs / "router.log"
    return Router(Launched("the router", f"http://{host}:{port}", command, log, patience, ready=LIVE, alive=LIVE))
