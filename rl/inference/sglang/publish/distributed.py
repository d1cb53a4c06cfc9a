"""Weights broadcast to the servers by NCCL or gloo: `/update_weights_from_distributed`.

The trainer has no torch. It lays the weights into shared memory, and `sender.py`, a small process with the Python of
SGLang's environment, maps them there and is rank 0 of the group whose other ranks are in the servers.
"""

import asyncio
import json
import math
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from envs.errors import ConfigError
from rl.inference.engine import EngineError
from rl.inference.label import Label
from rl.inference.sglang.http import Http
from rl.inference.sglang.publish.disk import remove
from rl.inference.sglang.publish.gather import begin, each, parts
from rl.inference.sglang.publish.shared import HEAD, Lying, SharedTensors, left_behind, of_this_host, share
from rl.inference.sglang.publish.way import Exporter, Failures
from rl.models.base import Params

SENDER = Path(__file__).with_name("sender.py")

BUCKET = 1 << 29
"""Bytes that a server holds beside its weights while it receives."""


class Distributed:
    """Publishes through a process group, which is made for the first publication and again after a failure.

    Args:
        exporter: how parameters become tensors.
        http: asks the servers; its time-out has to be enough to load weights.
        python: of SGLang's environment.
        host: address of this host at which the servers reach it.
        backend: nccl between GPUs, gloo between CPUs.
        timeout: seconds that the group may take to come together, and a broadcast to arrive.
    """

    def __init__(
        self,
        exporter: Exporter,
        http: Http,
        *,
        python: Path,
        host: str = "127.0.0.1",
        backend: str = "gloo",
        timeout: float = 120.0,
    ) -> None:
        self._exporter, self._http = exporter, http
        self._python, self._host, self._backend, self._timeout = python, host, backend, timeout
        self._sender: asyncio.subprocess.Process | None = None
        self._joined: tuple[str, ...] = ()
        self._group = ""
        for path in left_behind():
            remove(path)

    async def prepare(self, params: Params, version: int) -> SharedTensors:
        return await asyncio.to_thread(share, self._exporter, params)

    async def transfer(self, snapshot: SharedTensors, urls: Sequence[str]) -> None:
        if self._joined != tuple(urls):
            await self._leave()
            await self._join(urls)

    async def commit(self, snapshot: SharedTensors, urls: Sequence[str], label: Label, *, flush: bool) -> Failures:
        await self.transfer(snapshot, urls)
        failures = await each(urls, lambda url: begin(self._http, url))
        buckets = list(_buckets(snapshot.tensors))
        for number, bucket in enumerate(buckets):
            if failures:
                break
            last = number == len(buckets) - 1
            failures = await self._send(snapshot.path, bucket, urls, label if last else None, flush and last)
        ended = await each(urls, lambda url: self._http.post(url, "/end_weight_update"))
        failures = {**ended, **failures}
        if failures:
            await self._leave()
        return failures

    def adopt(self, snapshot: SharedTensors) -> None:
        return None

    async def forget(self, url: str) -> None:
        await self._leave()

    async def discard(self, snapshot: SharedTensors) -> None:
        remove(snapshot.path)

    def bytes(self, snapshot: SharedTensors) -> int:
        return snapshot.size

    async def close(self) -> None:
        await self._leave()

    async def _join(self, urls: Sequence[str]) -> None:
        """Makes the group: this host's sender and every process of the servers.

        Raises:
            ConfigError: for servers that cannot be part of it.
            EngineError: when it did not come together.
        """
        ranks = []
        for url in urls:
            if of_this_host(self._host) and not of_this_host(urlsplit(url).hostname or ""):
                raise ConfigError(
                    f"the server at {url} is on another host, which cannot reach this one at {self._host}; "
                    "inference.publish_address names an address at which it can"
                )
            ranks.append(math.prod(await parts(self._http, url, "distributed")))
        self._sender = await asyncio.create_subprocess_exec(
            str(self._python),
            str(SENDER),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        )
        self._group = f"upswing-{uuid.uuid4().hex[:8]}"
        port = _free_port(self._host)
        common = {"world_size": 1 + sum(ranks), "backend": self._backend}
        order = {"host": self._host, "port": port, "group": self._group, "timeout": self._timeout, **common}
        offsets = {url: 1 + sum(ranks[:number]) for number, url in enumerate(urls)}
        body = {"master_address": self._host, "master_port": port, "group_name": self._group, **common}
        _, failures = await asyncio.gather(
            self._order("join", order),
            each(
                urls,
                lambda url: self._http.post(url, "/init_weights_update_group", {**body, "rank_offset": offsets[url]}),
            ),
        )
        for failure in failures.values():
            raise failure
        self._joined = tuple(urls)

    async def _send(
        self, path: Path, bucket: Sequence[Lying], urls: Sequence[str], label: Label | None, flush: bool
    ) -> dict[str, EngineError]:
        """Broadcasts a part of the weights; the last part brings the label."""
        body: dict[str, Any] = {
            "names": [tensor.name for tensor in bucket],
            "dtypes": [tensor.dtype for tensor in bucket],
            "shapes": [list(tensor.shape) for tensor in bucket],
            "group_name": self._group,
            "flush_cache": flush,
        }
        if label is not None:
            body["weight_version"] = str(label)
        order = {"path": str(path), "head": HEAD, "tensors": [list(tensor) for tensor in bucket]}
        sending = asyncio.ensure_future(self._order("send", order))
        taking = asyncio.ensure_future(
            each(urls, lambda url: self._http.post(url, "/update_weights_from_distributed", body))
        )
        await asyncio.wait((sending, taking), return_when=asyncio.FIRST_COMPLETED)
        if (sending.done() and sending.exception()) or (taking.done() and taking.result()):
            await self._kill()  # or the others would wait for what does not come until their time is over
        failures = await taking
        try:
            await sending
        except EngineError as error:
            return dict.fromkeys(urls, error) | failures
        return failures

    async def _order(self, verb: str, arguments: dict[str, Any]) -> None:
        """Has the sender do something.

        Raises:
            EngineError: when it could not, or has ended.
        """
        sender = self._sender
        assert sender is not None and sender.stdin is not None and sender.stdout is not None
        try:
            sender.stdin.write((json.dumps({verb: arguments}) + "\n").encode())
            await sender.stdin.drain()
            line = await sender.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            line = b""
        answer = json.loads(line) if line else {"error": f"it ended with code {await sender.wait()}"}
        if "error" in answer:
            raise EngineError(
                f"the process that broadcasts weights ({self._python}) could not {verb}: {answer['error']}"
            )

    async def _leave(self) -> None:
        """Takes the group apart; servers that are gone have left already."""
        if self._joined:
            await each(
                self._joined,
                lambda url: self._http.post(url, "/destroy_weights_update_group", {"group_name": self._group}),
            )
        self._joined = ()
        await self._kill()

    async def _kill(self) -> None:
        if self._sender is not None:
            if self._sender.returncode is None:
                self._sender.kill()
            await self._sender.wait()
            self._sender = None


def _free_port(host: str) -> int:
    """A port of this host that nobody listens at."""
    try:
        with socket.socket() as free:
            free.bind((host, 0))
            port: int = free.getsockname()[1]
            return port
    except OSError as error:
        raise ConfigError(f"inference.publish_address is {host}: {error}; expected an address of this host") from error


def _buckets(tensors: Sequence[Lying]) -> Iterator[list[Lying]]:
    """The tensors in parts of about `BUCKET` bytes."""
    bucket = list[Lying]()
    for tensor in tensors:
        if bucket and tensor.offset - bucket[0].offset >= BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
