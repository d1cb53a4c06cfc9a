"""`inference=sglang`: a policy on SGLang's servers, from the config to an engine and back to nothing left behind."""

import asyncio
import secrets
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from envs.errors import ConfigError, unknown_name
from rl.cli.build import Policy
from rl.cli.export import write_directory
from rl.config import SglangInference
from rl.inference.engine import EngineError
from rl.inference.sglang.command import find_python
from rl.inference.sglang.engine import SglangEngine
from rl.inference.sglang.fleet import Fleet, Revival
from rl.inference.sglang.http import Http
from rl.inference.sglang.launch import attached, launched
from rl.inference.sglang.publish.adapters import Adapters
from rl.inference.sglang.publish.disk import Disk
from rl.inference.sglang.publish.distributed import Distributed
from rl.inference.sglang.publish.lora import Lora
from rl.inference.sglang.publish.peft_files import Shape, shape_of
from rl.inference.sglang.publish.publisher import Publisher
from rl.inference.sglang.publish.shapes import check_shape
from rl.inference.sglang.publish.tensor import Tensor
from rl.inference.sglang.publish.way import Exporter, Way
from rl.inference.sglang.server import Patience
from rl.models.lora import bare
from rl.weights.save import whole

WAYS = ("disk", "tensor", "distributed", "lora")
PAUSES = ("retract", "in_place", "abort")

MARGIN = 7
"""SGLang takes prompts of at most so many tokens less than its context."""


@asynccontextmanager
async def sglang_engine(
    config: SglangInference, policy: Policy, folder: Path, report: Callable[[str], None]
) -> AsyncIterator[SglangEngine]:
    """An engine whose servers have the policy's weights; whatever was started for it is ended with it.

    Args:
        config: which servers, and how.
        policy: what they sample from.
        folder: for the servers' logs and, as long as they run, the model they are started from.
        report: is told how things stand.

    Raises:
        ConfigError: for values that make no sense, a missing environment, a taken port, an adapter that servers
            cannot have.
        EngineError: when servers do not start.
    """
    if config.publish not in WAYS:
        raise unknown_name("inference.publish", config.publish, WAYS)
    if config.pause not in PAUSES:
        raise unknown_name("inference.pause", config.pause, PAUSES)
    context = config.context or policy.model.config.context
    shape = _adapter(config, policy) if config.publish == "lora" else None
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)  # of a run that was killed
    served = policy if shape is None else policy._replace(params=bare(policy.params))
    await asyncio.to_thread(_write, model, served, config.dtype, context + MARGIN)
    try:
        fleet = _fleet(config, shape, model, folder, report)
        await fleet.start()
        http = Http(timeout=config.load_timeout)
        try:
            owner = await asyncio.to_thread(_owner, folder)
            engine = await _engine(config, policy, shape, context, model, owner, fleet, http)
        except BaseException:
            await http.close()
            await fleet.close()
            raise
        try:
            await engine.load_weights(policy.params, 0)
            yield engine
        finally:
            await engine.close()
    finally:
        await asyncio.to_thread(shutil.rmtree, model, ignore_errors=True)


def _adapter(config: SglangInference, policy: Policy) -> Shape:
    """What servers have to be able to hold.

    Raises:
        ConfigError: when the policy has no adapter, or one that servers cannot have.
    """
    if config.data_parallel > 1:
        raise ConfigError(
            f"inference.data_parallel is {config.data_parallel}, but SGLang gives adapters to one copy of a model per "
            f"server; set inference.servers={config.data_parallel} inference.data_parallel=1, or inference.publish=disk"
        )
    return shape_of(policy.origin.family, policy.model, policy.params)


def _write(model: Path, policy: Policy, dtype: str, context: int) -> None:
    """The model as servers are started from it. A context that is its own to choose gets SGLang's margin."""
    origin = policy.origin
    if origin.source is None and not origin.settings.get("rope_scaling"):
        origin = origin._replace(settings={**origin.settings, "max_position_embeddings": context})
    with whole(model) as draft:
        write_directory(draft, policy._replace(origin=origin), dtype)


def _fleet(
    config: SglangInference, shape: Shape | None, model: Path, folder: Path, report: Callable[[str], None]
) -> Fleet:
    patience = Patience(ready=config.ready_timeout, answer=config.load_timeout)
    revival = Revival(restarts=config.restarts)
    if config.urls:
        return attached(config.urls, patience=patience, revival=revival, report=report)
    arguments: dict[str, Any] = {"skip-tokenizer-init": True}
    if config.slots is not None:
        arguments["max-running-requests"] = config.slots
    if shape is not None:
        arguments |= shape.arguments(config.platform)
    return launched(
        find_python(None if config.environment is None else Path(config.environment)),
        model,
        folder,
        servers=config.servers,
        port=config.port,
        platform=config.platform,
        dtype=config.dtype,
        tensor_parallel=config.tensor_parallel,
        data_parallel=config.data_parallel,
        memory_fraction=config.memory_fraction,
        arguments=arguments | config.arguments,
        patience=patience,
        revival=revival,
        report=report,
    )


async def _engine(
    config: SglangInference,
    policy: Policy,
    shape: Shape | None,
    context: int,
    model: Path,
    owner: str,
    fleet: Fleet,
    http: Http,
) -> SglangEngine:
    infos = [await http.get(url, "/server_info") for url in fleet.urls]
    room = min(_room(url, info) for url, info in zip(fleet.urls, infos, strict=True))
    if config.context is not None and room < config.context:
        raise ConfigError(f"inference.context is {config.context}, but the servers have room for {room} tokens")
    exporter = Exporter(policy.origin.family, policy.model, config.dtype)
    ours = any(info.get("server") == "upswing" for info in infos)  # `rl serve` checks names and shapes by itself
    if config.urls and not ours:
        for url, info in zip(fleet.urls, infos, strict=True):
            check_shape(policy.origin.family, policy.model.config, Path(info["model_path"]), url)
    if ours and shape is not None:
        raise ConfigError("inference.publish=lora needs servers of SGLang; `rl serve` holds no adapters")
    adapters = None if shape is None else Adapters(keep=config.pause == "in_place")
    publisher = Publisher(
        _way(config, exporter, shape, adapters, model, owner, http),
        http,
        names=None if ours else exporter.names(),
        # Nothing is paused for an adapter.
        pause=config.pause if adapters is None else None,  # type: ignore[arg-type]  # one of PAUSES
        # Keys and values of other weights would be read on as if they were of these, except where requests keep theirs.
        flush=config.pause != "in_place",
        owner=owner,
    )
    return SglangEngine(
        fleet,
        publisher,
        http,
        adapters=adapters,
        context=min(context, room),
        vocabulary=policy.model.config.vocab_size,
        text_of=policy.renderer.text,
        owner=owner,
        in_flight=config.in_flight,
        max_waiting=config.max_waiting,
        timeout=config.timeout,
    )


def _owner(folder: Path) -> str:
    """What names this run to servers, and no other one. It is kept: a run that is resumed is the same one."""
    file = folder / "owner"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / ".owner"
        draft.write_text(f"{socket.gethostname()}/{folder.resolve().parent.name}.{secrets.token_hex(4)}", "utf-8")
        draft.replace(file)
    return file.read_text("utf-8")


def _way(
    config: SglangInference,
    exporter: Exporter,
    shape: Shape | None,
    adapters: Adapters | None,
    model: Path,
    owner: str,
    http: Http,
) -> Way[Any]:
    folder = None if config.publish_folder is None else Path(config.publish_folder)
    if shape is not None and adapters is not None:
        return Lora(exporter.family, exporter.model, shape, http, adapters, folder=folder, owner=owner)
    match config.publish:
        case "tensor":
            return Tensor(exporter, http)
        case "distributed":
            python = find_python(None if config.environment is None else Path(config.environment))
            backend = "gloo" if config.platform == "cpu" else "nccl"
            return Distributed(exporter, http, python=python, host=config.publish_address, backend=backend)
        case _:
            return Disk(exporter, http, folder=folder, beside=model)


def _room(url: str, info: Any) -> int:
    """The most tokens of a prompt and its completion at a server."""
    room = info.get("max_req_input_len") or info.get("context_length") if isinstance(info, dict) else None
    if not isinstance(room, int):
        raise EngineError(f"{url}/server_info tells no max_req_input_len; expected SGLang 0.5.23 or `rl serve`")
    return room
