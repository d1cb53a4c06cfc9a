"""Weights in shared memory, which servers of the same host map: `/update_weights_from_tensor`."""

import asyncio
import base64
from collections.abc import Sequence
from urllib.parse import urlsplit

from envs.errors import ConfigError
from rl.inference.label import Label
from rl.inference.sglang.http import Http
from rl.inference.sglang.publish.disk import remove
from rl.inference.sglang.publish.gather import begin, each, parts
from rl.inference.sglang.publish.handles import handles
from rl.inference.sglang.publish.shared import SharedTensors, left_behind, of_this_host, share
from rl.inference.sglang.publish.way import Exporter, Failures
from rl.models.base import Params


class Tensor:
    """Publishes by `/begin_weight_update`, `/update_weights_from_tensor` with handles, and `/end_weight_update`.

    Args:
        exporter: how parameters become tensors.
        http: asks the servers; its time-out has to be enough to load weights.
    """

    def __init__(self, exporter: Exporter, http: Http) -> None:
        self._exporter, self._http = exporter, http
        self._ranks: dict[str, int] = {}
        for path in left_behind():
            remove(path)

    async def prepare(self, params: Params, version: int) -> SharedTensors:
        return await asyncio.to_thread(share, self._exporter, params)

    async def transfer(self, snapshot: SharedTensors, urls: Sequence[str]) -> None:
        for url in urls:
            if not of_this_host(urlsplit(url).hostname or ""):
                # It would end: an exception where it unpickles ends its scheduler.
                raise ConfigError(
                    f"the server at {url} is on another host, and publish=tensor goes through this host's memory; "
                    "publish=disk with a shared folder and publish=distributed reach others"
                )
            if url not in self._ranks:
                self._ranks[url], _ = await parts(self._http, url, "tensor")

    async def commit(self, snapshot: SharedTensors, urls: Sequence[str], label: Label, *, flush: bool) -> Failures:
        if not snapshot.path.is_file():
            raise ConfigError(f"{snapshot.path} is gone; whoever cleans shared memory must leave what a run has there")
        payload = base64.b64encode(handles(snapshot)).decode()

        async def give(url: str) -> None:
            body = {
                "serialized_named_tensors": [payload] * self._ranks[url],
                "weight_version": str(label),
                "flush_cache": flush,
            }
            async with Session(self._http, url):
                await self._http.post(url, "/update_weights_from_tensor", body)

        return await each(urls, give)

    def adopt(self, snapshot: SharedTensors) -> None:
        return None

    async def forget(self, url: str) -> None:
        self._ranks.pop(url, None)

    async def discard(self, snapshot: SharedTensors) -> None:
        remove(snapshot.path)

    def bytes(self, snapshot: SharedTensors) -> int:
        return snapshot.size

    async def close(self) -> None:
        return None


class Session:
    """What must stand around an update of single tensors; it is ended also when the update fails."""

    def __init__(self, http: Http, url: str) -> None:
        self._http, self._url = http, url

    async def __aenter__(self) -> None:
        await begin(self._http, self._url)

    async def __aexit__(self, *_: object) -> None:
        await self._http.post(self._url, "/end_weight_update")
