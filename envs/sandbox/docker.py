"""Sandboxes as Docker containers, by way of the daemon's HTTP API.

A container's first process is our warden, as a user without rights or capabilities; the image is read-only, all files
are in sized tmpfs, and the memory of processes and files together is limited by the container's cgroup.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from envs.errors import ConfigError, InfrastructureError
from envs.sandbox.base import Limits
from envs.sandbox.owner import LABEL, crashed, owner
from envs.sandbox.warded import WARDEN, WardedSandbox, warden_limits
from envs.sandbox.wire import PumpedWire

if TYPE_CHECKING:
    import aiohttp

API = "/v1.41"  # Docker 20.10 and newer, and Podman

_USER = 1000
_SPARE_MEMORY = 2**26  # for the warden and the kernel's own
_REMOVAL_SECONDS = 20.0


@dataclass(frozen=True)
class Docker:
    """Makes sandboxes in the Docker daemon of this machine, or of another.

    Containers share the machine's kernel. Where that is too little, name a runtime with a kernel of its own
    (`runtime="runsc"` for gVisor), which the daemon has to know.

    Attributes:
        image: has `sh` and Python 3; it is pulled if the daemon does not have it.
        host: `unix:///path/to/socket` or `tcp://host:port`; by default `$DOCKER_HOST`, else the usual socket.
        runtime: the daemon's default, or another one's name.
        python: the command that starts Python in the image.
    """

    image: str = "python:3.12-slim"
    host: str = ""
    runtime: str = ""
    python: str = "python3"

    async def start(self, limits: Limits) -> WardedSandbox:
        """A new container. Its working folder is `/work`.

        `disk` and `files` hold for `/work` and for `/tmp` each; what lies there counts as memory, too, of which there
        is `memory + disk`. With `network="host"` the container is in Docker's default network.

        Raises:
            ConfigError: no daemon answers, or it has no such image or runtime.
            InfrastructureError: the container did not start.
        """
        daemon = Daemon.named(self.host)
        wanted = self._container(limits)
        try:
            made = await daemon.call("POST", "/containers/create", wanted)
        except Refused as refused:
            if refused.status != 404:
                raise refused.explained() from refused
            await daemon.pull(self.image)
            made = await daemon.call("POST", "/containers/create", wanted)
        name = made["Id"]
        try:
            wire = await daemon.attach(name)
        except BaseException:
            await daemon.remove(name)
            raise
        try:
            await daemon.call("POST", f"/containers/{name}/start")
        except Refused as refused:
            await wire.close()
            raise refused.explained() from refused
        except BaseException:
            await wire.close()
            raise
        return await WardedSandbox.over(wire, limits, what="docker")

    async def reap(self) -> int:
        """Removes the containers of owners that ran on this machine and crashed. (A container also ends by itself when
        its owner's connection breaks.)"""
        daemon = Daemon.named(self.host)
        filters = quote(json.dumps({"label": [LABEL]}))
        found = await daemon.call("GET", f"/containers/json?all=1&filters={filters}")
        left = [each["Id"] for each in found if crashed(each["Labels"].get(LABEL))]
        await asyncio.gather(*(daemon.remove(name) for name in left))
        return len(left)

    def _container(self, limits: Limits) -> dict[str, Any]:
        """What the daemon is asked to make."""
        tmpfs = f"size={limits.disk},nr_inodes={limits.files},uid={_USER},gid={_USER},mode=700,nosuid,nodev,exec"
        host: dict[str, Any] = {
            "AutoRemove": True,
            "ReadonlyRootfs": True,
            "NetworkMode": "none" if limits.network == "none" else "default",
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Tmpfs": {"/work": tmpfs, "/tmp": tmpfs},
            "ShmSize": max(2**16, limits.disk // 4),
            "Memory": limits.memory + limits.disk + _SPARE_MEMORY,
            "MemorySwap": limits.memory + limits.disk + _SPARE_MEMORY,
            "PidsLimit": limits.processes + 2,  # the warden, and room for it to fork
            "Ulimits": [{"Name": name, "Soft": n, "Hard": n} for name, n in (("nofile", 1024), ("core", 0))],
        }
        if self.runtime:
            host["Runtime"] = self.runtime
        environment = {"HOME": "/work", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        return {
            "Image": self.image,
            "Entrypoint": [self.python, "-I", "-S", "-c", WARDEN.read_text("utf-8")],
            "Cmd": [warden_limits(limits)],
            "User": f"{_USER}:{_USER}",
            "WorkingDir": "/work",
            "Hostname": "sandbox",
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "Labels": {LABEL: owner()},
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "OpenStdin": True,
            "StdinOnce": True,  # when our connection breaks, its stdin ends, and with it the warden
            "HostConfig": host,
        }


class Refused(Exception):
    """The daemon answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the docker daemon answered {status}: {message}")
        self.status, self.message = status, message

    def explained(self) -> Exception:
        """What that means for whoever wanted a sandbox: 4xx is our asking, 5xx may pass."""
        if self.status == 400 or "unknown or invalid runtime" in self.message:
            return ConfigError(f"{self}; check Docker(image=…, runtime=…) and the limits")
        return InfrastructureError(str(self))


@dataclass(frozen=True)
class Daemon:
    """Where a Docker daemon listens: a socket's path, or a host and port."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def named(cls, name: str) -> Daemon:
        """Of `unix://…` or `tcp://…`; "" for the usual place.

        Raises:
            ConfigError: it is neither.
        """
        name = name or os.environ.get("DOCKER_HOST", "")
        if not name:
            own = Path(os.environ.get("XDG_RUNTIME_DIR", "/nowhere"), "docker.sock")
            name = f"unix://{own}" if own.exists() else "unix:///var/run/docker.sock"
        parts = urlsplit(name)
        if parts.scheme == "unix" and parts.path:
            return cls(path=parts.path)
        if parts.scheme == "tcp" and parts.hostname:
            return cls(host=parts.hostname, port=parts.port or 2375)
        raise ConfigError(
            f"the docker host is {name!r}; expected unix:///path or tcp://host:port (over ssh: forward the socket with "
            "`ssh -L /tmp/docker.sock:/var/run/docker.sock HOST` and name unix:///tmp/docker.sock)"
        )

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request; the JSON of its answer, or None.

        Raises:
            Refused: it answered with an error.
            ConfigError: nobody answers there, or we may not ask.
            InfrastructureError: the connection broke.
        """
        async with self._session() as session, session.request(method, API + path, json=body) as answer:
            text = await answer.text()
            if answer.status >= 400:
                raise Refused(answer.status, _message(text))
        return json.loads(text) if text.strip() else None

    async def pull(self, image: str) -> None:
        """Fetches an image.

        Raises:
            ConfigError: the daemon cannot get it.
        """
        where = f"/images/create?fromImage={quote(image, safe='')}" + (
            "" if ":" in image.split("/")[-1] else "&tag=latest"
        )
        try:
            async with self._session() as session, session.post(API + where) as answer:
                lines = (await answer.text()).splitlines()
                failed = [_message(line) for line in lines if '"error"' in line or answer.status >= 400]
        except InfrastructureError as error:
            failed = [str(error)]
        if failed:
            raise ConfigError(
                f"docker has no image {image!r} and cannot pull it: {failed[-1]}. Build or load one with sh and "
                "Python 3, and name it with Docker(image=…)"
            )

    async def attach(self, container: str) -> PumpedWire:
        """The standard streams of a container, which need not have started yet."""
        reader, writer = await self._connect()
        request = f"POST {API}/containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\n"
        writer.write(f"{request}Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        if head.split()[1] not in ("101", "200"):
            writer.close()
            raise InfrastructureError(f"cannot attach to the docker container: {head.splitlines()[0]}")

        async def send(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        async def end() -> None:
            writer.close()
            await self.remove(container)

        wire = PumpedWire(send, end)
        wire.until(_demultiplex(reader, wire))
        return wire

    async def remove(self, container: str) -> None:
        """Ends a container, waits until it is gone; fine if it is already."""
        try:
            await self.call("DELETE", f"/containers/{container}?force=1&v=1")
        except Refused as refused:
            if refused.status not in (404, 409):  # gone, or going
                raise InfrastructureError(str(refused)) from refused
        async with asyncio.timeout(_REMOVAL_SECONDS):
            while True:
                try:
                    await self.call("GET", f"/containers/{container}/json")
                except Refused:
                    return
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        import aiohttp

        base = "http://docker" if self.path else f"http://{self.host}:{self.port}"
        connector = aiohttp.UnixConnector(self.path) if self.path else aiohttp.TCPConnector()
        try:
            async with aiohttp.ClientSession(base, connector=connector) as session:
                yield session
        except aiohttp.ClientConnectorError as error:
            raise self._nobody(error.os_error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise InfrastructureError(f"the docker daemon at {self} does not answer: {error!r}") from error

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            if self.path:
                return await asyncio.open_unix_connection(self.path)
            return await asyncio.open_connection(self.host, self.port)
        except OSError as error:
            raise self._nobody(error) from error

    def _nobody(self, error: OSError) -> Exception:
        kind = InfrastructureError if isinstance(error, ConnectionRefusedError) else ConfigError
        return kind(
            f"no docker daemon at {self}: {error}. Start one (`systemctl start docker`), name it with "
            "Docker(host=…) or $DOCKER_HOST, or get the right to use it (group `docker`)"
        )

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


async def _demultiplex(reader: asyncio.StreamReader, wire: PumpedWire) -> None:
    """Feeds the wire: pieces come with a head of 8 bytes, the stream's number first, the length last."""
    try:
        while True:
            stream, size = struct.unpack(">BxxxI", await reader.readexactly(8))
            piece = await reader.readexactly(size)
            if stream == 1:
                wire.feed(piece)
            else:
                wire.feed_error(piece)
    except asyncio.IncompleteReadError:
        pass  # the container has ended


def _message(text: str) -> str:
    try:
        found = json.loads(text)
        return str(found.get("message") or found.get("error") or text)
    except ValueError:
        return text.strip()
