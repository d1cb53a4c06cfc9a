"""Weights as files that the servers read: in memory when they run on this host, in a shared folder when they do not."""

import asyncio
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from envs.errors import UpswingError
from rl.inference.label import Label
from rl.inference.sglang.http import Http
from rl.inference.sglang.publish.gather import each
from rl.inference.sglang.publish.shared import MEMORY, check_room, fresh_name, left_behind
from rl.inference.sglang.publish.way import Exporter, Failures
from rl.models.base import Params
from rl.models.lora import dense
from rl.weights.safetensors_dir import INDEX, WHOLE, contents
from rl.weights.save import save_weights


class Published(NamedTuple):
    """A folder of weights and their size in bytes."""

    folder: Path
    size: int


@dataclass(frozen=True, slots=True)
class Writers:
    """The processes that write one publication together, over a mesh of several hosts.

    Attributes:
        number: which of them this is; 0 makes the folder.
        count: how many they are.
        wait: returns once all have called it with the same word.
    """

    number: int = 0
    count: int = 1
    wait: Callable[[str], None] = lambda word: None


class Disk:
    """Publishes by `/update_weights_from_disk`.

    A version is a Hugging Face directory that comes into being whole. With `beside`, a server can also be started from
    it.

    Args:
        exporter: how parameters become tensors.
        http: asks the servers; its time-out has to be enough to load weights.
        folder: where versions lie; None: in this host's memory.
        beside: a checkpoint whose other files (config, tokenizer) each version gets too.
        writers: the processes that write together.
    """

    def __init__(
        self,
        exporter: Exporter,
        http: Http,
        *,
        folder: Path | None = None,
        beside: Path | None = None,
        writers: Writers = Writers(),
    ) -> None:
        self._exporter, self._http = exporter, http
        self._own = folder is None
        self._folder = folder or MEMORY / fresh_name()
        self._beside, self._writers = beside, writers
        self._count = itertools.count()
        if self._own:
            for path in left_behind():
                remove(path)

    async def prepare(self, params: Params, version: int) -> Published:
        return await asyncio.to_thread(self._write, dense(params), version)

    async def transfer(self, snapshot: Published, urls: Sequence[str]) -> None:
        await asyncio.to_thread(check_folder, snapshot.folder, self._exporter.names())

    async def commit(self, snapshot: Published, urls: Sequence[str], label: Label, *, flush: bool) -> Failures:
        body = {"model_path": str(snapshot.folder), "weight_version": str(label), "flush_cache": flush}
        # A server that cannot read what it is told to ends (its way back goes through the same files), so they are
        # looked at once more.
        await self.transfer(snapshot, urls)
        return await each(urls, lambda url: self._http.post(url, "/update_weights_from_disk", body))

    def adopt(self, snapshot: Published) -> None:
        return None

    async def forget(self, url: str) -> None:
        return None

    async def discard(self, snapshot: Published) -> None:
        if self._writers.number == 0:
            await asyncio.to_thread(remove, snapshot.folder)

    def bytes(self, snapshot: Published) -> int:
        return snapshot.size

    async def close(self) -> None:
        if self._own and self._writers.number == 0 and self._folder.is_dir():
            await asyncio.to_thread(remove, self._folder)

    def _write(self, params: Params, version: int) -> Published:
        size = sum(tensor.size for tensor in self._exporter.tensors())
        folder = self._folder / f"{version:08d}-{next(self._count)}"
        draft = folder.with_name(f".{folder.name}")
        number, count, wait = self._writers.number, self._writers.count, self._writers.wait
        if number == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            check_room(self._folder, size)
            draft.mkdir()
            if self._beside is not None:
                _link_beside(self._beside, draft)
        wait(f"draft {folder.name}")
        try:
            family, model, dtype = self._exporter
            save_weights(draft, family, model, params, dtype=lambda name: dtype, writer=number, writers=count)
            wait(f"written {folder.name}")
            if number == 0:
                draft.replace(folder)
        except BaseException:
            remove(draft)
            raise
        wait(f"whole {folder.name}")
        return Published(folder, size)


def check_folder(folder: Path, names: Sequence[str]) -> None:
    """Sees that files of weights are whole and hold what they should.

    Raises:
        UpswingError: naming the file and what is wrong with it.
    """
    found: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        found |= contents(file).keys()
    if lost := sorted(set(names) - found):
        raise UpswingError(f"{folder} lacks {len(lost)} tensors, {lost[0]} for one; no server was given it")


def remove(path: Path) -> None:
    """Removes a file or a folder, which another process may just be removing too."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _link_beside(source: Path, folder: Path) -> None:
    """The files of a checkpoint that are no weights."""
    for path in source.iterdir():
        if (
            path.is_file()
            and path.suffix not in (".safetensors", ".bin", ".gguf", ".pt")
            and path.name not in (WHOLE, INDEX)
        ):
            if path.stat().st_dev == folder.stat().st_dev:
                os.link(path, folder / path.name)
            else:
                shutil.copy2(path, folder / path.name)
