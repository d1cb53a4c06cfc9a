"""Publishes the adapter alone: `/load_lora_adapter`. The servers hold the frozen weights from the start.

A version is an adapter with a name of its own, and requests name the one they are to be drawn with. So nothing is
paused: a server reads the new one while it samples, the next request names it, and those under way have the one they
began with. The old one is taken from the servers once nobody uses it.
"""

import asyncio
import itertools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from envs.errors import ConfigError
from rl.inference.engine import EngineError
from rl.inference.label import Label, read_label
from rl.inference.sglang.http import Http
from rl.inference.sglang.publish.adapters import Adapter, Adapters
from rl.inference.sglang.publish.disk import check_folder, remove
from rl.inference.sglang.publish.gather import each
from rl.inference.sglang.publish.peft_files import Shape, tensors_for_server, write_for_server
from rl.inference.sglang.publish.rehearsal import TOLERANCE, Rehearsal, rehearse
from rl.inference.sglang.publish.shared import MEMORY, check_room, fresh_name, left_behind, of_this_host
from rl.inference.sglang.publish.way import Failures
from rl.models.base import Model, Params
from rl.models.family import Family
from rl.models.lora import split

UNLOAD_S = 5.0
"""A server gives an adapter up only when no request uses it. One that was told so late is asked again next time."""


@dataclass(slots=True, eq=False)
class Written:
    """An adapter as files, and who has it.

    Attributes:
        adapter: its name.
        folder: its files.
        names: of its tensors.
        size: bytes of its numbers.
        servers: URLs of those that have it.
    """

    adapter: Adapter
    folder: Path
    names: tuple[str, ...]
    size: int
    servers: set[str] = field(default_factory=set)


class Lora:
    """Publishes adapters.

    Args:
        family: of the model.
        model: whose parameters are published, an adapter among them.
        shape: of that adapter.
        http: asks the servers; its time-out has to be enough to load an adapter.
        adapters: is told of the newest, and knows which ones are in use.
        folder: where the files lie; None: in this host's memory.
        owner: names the run. Adapters that it has left on a server are taken away.
    """

    def __init__(
        self,
        family: Family,
        model: Model,
        shape: Shape,
        http: Http,
        adapters: Adapters,
        *,
        folder: Path | None = None,
        owner: str = "",
    ) -> None:
        self._family, self._model, self._shape = family, model, shape
        self._http, self._adapters, self._owner = http, adapters, owner
        self._own = folder is None
        self._folder = folder or MEMORY / fresh_name()
        self._mark, self._count = secrets.token_hex(3), itertools.count()
        self._rehearsal: Rehearsal | None = None
        self._ready: set[str] = set()  # servers that computed what they should
        self._newest: Written | None = None
        self._retired: list[Written] = []
        if self._own:
            for path in left_behind():
                remove(path)

    async def prepare(self, params: Params, version: int) -> Written:
        adapter, _ = split(params)
        if adapter is None:
            raise ConfigError("inference.publish=lora was given parameters without an adapter")
        if self._rehearsal is None:
            self._rehearsal = await rehearse(self._model, params)
        return await asyncio.to_thread(self._write, adapter, version)

    async def transfer(self, snapshot: Written, urls: Sequence[str]) -> None:
        await asyncio.gather(*(self._meet(url) for url in urls if url not in self._ready))
        await asyncio.to_thread(check_folder, snapshot.folder, snapshot.names)

    async def commit(self, snapshot: Written, urls: Sequence[str], label: Label, *, flush: bool) -> Failures:
        async def give(url: str) -> None:
            await self._load(snapshot, url)
            body = {"new_version": str(label), "abort_all_requests": False}  # tokens say whose they are
            await self._http.post(url, "/update_weight_version", body)

        return await each(urls, give)

    def adopt(self, snapshot: Written) -> None:
        self._newest, self._adapters.newest = snapshot, snapshot.adapter

    async def forget(self, url: str) -> None:
        self._ready.discard(url)
        for written in self._published():
            written.servers.discard(url)

    async def discard(self, snapshot: Written) -> None:
        if snapshot is self._newest:
            self._newest = None
        self._retired.append(snapshot)
        await self._sweep()

    def bytes(self, snapshot: Written) -> int:
        return snapshot.size

    async def close(self) -> None:
        await self._sweep()
        for written in self._retired:
            await asyncio.to_thread(remove, written.folder)
        if self._own:
            await asyncio.to_thread(remove, self._folder)

    def _write(self, adapter: Params, version: int) -> Written:
        tensors = tensors_for_server(self._family, self._model, adapter)
        name = f"{Label(version, self._owner)}#{self._mark}{next(self._count)}"
        folder = self._folder / f"{version:08d}-{name.rpartition('#')[2]}"
        self._folder.mkdir(parents=True, exist_ok=True)
        check_room(self._folder, sum(tensor.nbytes for tensor in tensors.values()))
        draft = folder.with_name(f".{folder.name}")
        draft.mkdir()
        try:
            size = write_for_server(draft, tensors, self._shape)
            draft.replace(folder)
        except BaseException:
            remove(draft)
            raise
        return Written(Adapter(name, version), folder, tuple(tensors), size)

    def _published(self) -> list[Written]:
        return [*self._retired, *([] if self._newest is None else [self._newest])]

    async def _load(self, written: Written, url: str) -> None:
        if url in written.servers:
            return
        name, path = written.adapter.name, str(written.folder)
        answer = await self._http.post(url, "/load_lora_adapter", {"lora_name": name, "lora_path": path})
        written.servers.add(url)
        if (answer.get("loaded_adapters") or {}).get(name) != path:
            raise EngineError(f"{url}/load_lora_adapter says nothing of {name}: {str(answer)[:300]}")

    async def _unload(self, written: Written) -> None:
        """Takes an adapter from the servers that have it; `servers` are then those that would not."""

        async def take(url: str) -> None:
            body = {"lora_name": written.adapter.name}
            await self._http.post(url, "/unload_lora_adapter", body, timeout=UNLOAD_S)
            written.servers.discard(url)

        await each(sorted(written.servers), take)

    async def _sweep(self) -> None:
        """Takes adapters away that nobody uses any more."""
        for written in [written for written in self._retired if not written.adapter.users]:
            await self._unload(written)
            if not written.servers:
                self._retired.remove(written)
                await asyncio.to_thread(remove, written.folder)

    async def _meet(self, url: str) -> None:
        """Sees that a server can hold these adapters and computes with one what the trainer does.

        Raises:
            ConfigError: when it cannot, or computes something else.
        """
        if self._own and not of_this_host(urlsplit(url).hostname or ""):
            raise ConfigError(
                f"the server at {url} is on another host, which does not see this one's memory; name a folder that "
                "both see: inference.publish_folder=FOLDER"
            )
        check_server(await self._http.get(url, "/server_info"), self._shape, url)
        await self._clear(url)
        assert self._rehearsal is not None
        trial = await asyncio.to_thread(self._write, self._rehearsal.adapter, 0)
        try:
            await self._load(trial, url)
            found = await self._scored(url, self._rehearsal.ids, trial.adapter.name)
        finally:
            await self._unload(trial)
            await asyncio.to_thread(remove, trial.folder)
        if not self._rehearsal.passes(found):
            raise ConfigError(
                f"the server at {url} does not compute what the trainer does with an adapter: the log-probabilities of "
                f"{len(found)} tokens differ by {self._rehearsal.difference(found):.2g} nats each, where the adapter "
                f"itself makes {self._rehearsal.effect:.2g} and {TOLERANCE:.0%} of that may be rounding. Start it with "
                "the weights that the adapter is trained beside"
            )
        self._ready.add(url)

    async def _scored(self, url: str, ids: Sequence[int], name: str) -> list[float]:
        body = {
            "input_ids": list(ids),
            "lora_path": name,
            "sampling_params": {"temperature": 0, "max_new_tokens": 1},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        answer = await self._http.post(url, "/generate", body)
        try:
            return [float(entry[0]) for entry in answer["meta_info"]["input_token_logprobs"][1:]]
        except (KeyError, TypeError, IndexError) as error:
            raise EngineError(f"{url}/generate gave no input_token_logprobs: {str(answer)[:300]}") from error

    async def _clear(self, url: str) -> None:
        """Takes away what this run left on a server when it was killed; what it still has was only out of reach."""
        known = {written.adapter.name: written for written in self._published()}
        for card in (await self._http.get(url, "/v1/models"))["data"]:
            name = str(card["id"])
            label = read_label(name.partition("#")[0])
            if name in known:
                known[name].servers.add(url)
            elif label is not None and label.owner == self._owner != "" and "#" in name:
                await self._http.post(url, "/unload_lora_adapter", {"lora_name": name})


def check_server(info: Mapping[str, Any], shape: Shape, url: str) -> None:
    """Whether a server was started so that it can hold such adapters.

    Args:
        info: what `/server_info` says.

    Raises:
        ConfigError: naming the flags it lacks.
    """
    problems = []
    if not info.get("enable_lora"):
        problems.append("it holds no adapters (--enable-lora)")
    elif (largest := int(info.get("max_lora_rank") or 0)) < shape.rank:
        problems.append(f"its adapters have rank {largest} at most, and this one has {shape.rank} (--max-lora-rank)")
    if (copies := int(info.get("dp_size") or 1)) > 1:
        problems.append(f"it has {copies} copies of the model, and SGLang gives adapters to one (--data-parallel-size)")
    targets = set(info.get("lora_target_modules") or ())
    if info.get("enable_lora") and "all" not in targets and (lost := sorted(set(shape.modules) - targets)):
        problems.append(f"its adapters are not beside {', '.join(lost)} (--lora-target-modules)")
    if problems:
        flags = f"--enable-lora --max-lora-rank {shape.rank} --lora-target-modules {' '.join(shape.modules)}"
        raise ConfigError(
            f"the server at {url} cannot be given this policy's adapter: {'; '.join(problems)}. Start it with {flags}"
        )
