"""Sandboxes as pods of a Kubernetes cluster, by way of its Python client: `pip install 'upswing[kubernetes]'`.

A pod's one container is as a container of `docker.py`: our warden is its first process, as a user without rights, on a
read-only image, with files in memory. We are attached to its standard streams.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from envs.errors import ConfigError, InfrastructureError
from envs.sandbox.base import Limits
from envs.sandbox.owner import LABEL, MARK, crashed, owner
from envs.sandbox.remote import client_of, failures, made
from envs.sandbox.warded import WARDEN, WardedSandbox, warden_limits
from envs.sandbox.wire import PumpedWire

_USER = 1000
_SPARE_MEMORY = 2**26
_POLL_SECONDS = 0.2
_HOPELESS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
)
_NO_NETWORK = "upswing-no-network"
_STDIN, _STDOUT = 0, 1


@dataclass(frozen=True)
class Kubernetes:
    """Makes sandboxes as pods. The cluster and the rights are those of `~/.kube/config`, `$KUBECONFIG`, or of the pod
    that this runs in: to create, get, list, attach to and delete pods, and to create network policies.

    Attributes:
        image: has `sh` and Python 3.
        namespace: where the pods live.
        context: of the configuration file; by default its current one.
        runtime_class: how the cluster isolates them; for example gVisor's or Kata's name there.
        patience: seconds a pod may take to start: nodes may have to be added, images fetched.
        python: the command that starts Python in the image.
    """

    image: str = "python:3.12-slim"
    namespace: str = "default"
    context: str = ""
    runtime_class: str = ""
    patience: float = 300.0
    python: str = "python3"

    async def start(self, limits: Limits) -> WardedSandbox:
        """A new pod. Its working folder is `/work`; the cluster ends it at the deadline.

        Memory is limited to `memory + disk`, files in memory included; `disk` holds for `/work` and `/tmp` each;
        `files` is not kept, and `processes` only where the cluster limits them. Without network means a network policy
        that the cluster's network has to enforce: not all do.

        Raises:
            ConfigError: the client is missing, there is no cluster or no right to it, or the image cannot be had.
            InfrastructureError: the pod did not start.
        """
        cluster = await _Cluster.open(self.context, self.namespace)
        try:
            if limits.network == "none":
                await cluster.forbid_network()
            pod = self._pod(limits)
            name = pod["metadata"]["name"]
            await made(cluster.create(pod), lambda _: cluster.delete(name))
        except BaseException:
            await cluster.close()
            raise
        try:
            await cluster.running(name, self.patience)
            socket = await cluster.attach(name)
        except BaseException:
            await cluster.delete(name)
            await cluster.close()
            raise

        async def send(data: bytes) -> None:
            await socket.send_bytes(bytes([_STDIN]) + data)

        async def end() -> None:
            try:
                await socket.close()
                await cluster.delete(name)
            finally:
                await cluster.close()

        wire = PumpedWire(send, end)
        wire.until(_demultiplex(socket, wire))
        return await WardedSandbox.over(wire, limits, what="kubernetes")

    async def reap(self) -> int:
        """Deletes the pods of owners that ran on this machine and crashed. (A pod also ends by itself when its owner's
        connection breaks; what is left then is its entry, until somebody deletes it.)"""
        cluster = await _Cluster.open(self.context, self.namespace)
        try:
            left = [name for name, by in await cluster.pods() if crashed(by)]
            await asyncio.gather(*(cluster.delete(name) for name in left))
        finally:
            await cluster.close()
        return len(left)

    def _pod(self, limits: Limits) -> dict[str, Any]:
        """What the cluster is asked to make."""
        memory = limits.memory + limits.disk + _SPARE_MEMORY
        environment = {"HOME": "/work", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        folders = {"work": "/work", "tmp": "/tmp"}
        container = {
            "name": "sandbox",
            "image": self.image,
            "command": [self.python, "-I", "-S", "-c", WARDEN.read_text("utf-8")],
            "args": [warden_limits(limits)],
            "workingDir": "/work",
            "stdin": True,
            "stdinOnce": True,  # when our connection breaks, its stdin ends, and with it the warden
            "env": [{"name": name, "value": value} for name, value in environment.items()],
            "resources": {"limits": {"memory": str(memory)}, "requests": {"memory": str(min(memory, 2**27))}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": name, "mountPath": path} for name, path in folders.items()],
        }
        spec = {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": math.ceil(limits.deadline + self.patience),
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "hostname": "sandbox",
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": str(limits.disk)}} for name in folders
            ],
        }
        if self.runtime_class:
            spec["runtimeClassName"] = self.runtime_class
        network = {_NO_NETWORK: "true"} if limits.network == "none" else {}
        labels = {**MARK, LABEL: owner(), **network}
        return {"metadata": {"name": f"upswing-{secrets.token_hex(8)}", "labels": labels}, "spec": spec}


class _Cluster:
    """The API of a cluster, in one namespace."""

    def __init__(self, client: Any, streams: Any, api: Any, namespace: str, refused: Any) -> None:
        self._client, self._streams, self._api = client, streams, api
        self._namespace, self._refused = namespace, refused

    @classmethod
    async def open(cls, context: str, namespace: str) -> _Cluster:
        """Reads the configuration; says nothing to the cluster yet."""
        kubernetes = client_of("Kubernetes", "kubernetes_asyncio", "kubernetes")
        settings = client_of("Kubernetes", "kubernetes_asyncio.config", "kubernetes")
        stream = client_of("Kubernetes", "kubernetes_asyncio.stream", "kubernetes")
        configuration = kubernetes.client.Configuration()
        with failures("no Kubernetes cluster is configured", settings.ConfigException, OSError):
            if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
                settings.load_incluster_config(client_configuration=configuration)
            else:
                await settings.load_kube_config(context=context or None, client_configuration=configuration)
        client, streams = kubernetes.client.ApiClient(configuration), stream.WsApiClient(configuration)
        core = kubernetes.client.CoreV1Api
        return cls(client, streams, core(client), namespace, kubernetes.client.ApiException)

    async def close(self) -> None:
        await self._streams.close()
        await self._client.close()

    async def create(self, pod: dict[str, Any]) -> None:
        with self._failures("Kubernetes made no pod"):
            await self._api.create_namespaced_pod(self._namespace, pod)

    async def delete(self, name: str) -> None:
        """Fine if it is gone."""
        with self._failures(f"Kubernetes did not delete the pod {name}"):
            try:
                await self._api.delete_namespaced_pod(name, self._namespace, grace_period_seconds=0)
            except self._refused as refused:
                if refused.status != 404:
                    raise

    async def pods(self) -> list[tuple[str, str]]:
        """Ours and others': names and owners."""
        marks = ",".join(f"{name}={value}" for name, value in MARK.items())
        with self._failures("Kubernetes does not list pods"):
            found = await self._api.list_namespaced_pod(self._namespace, label_selector=marks)
        return [(pod.metadata.name, pod.metadata.labels.get(LABEL, "")) for pod in found.items]

    async def running(self, name: str, patience: float) -> None:
        """Waits until a pod runs.

        Raises:
            ConfigError: it never will: its image cannot be had, or it is not allowed.
            InfrastructureError: it ended, or nothing came of it within `patience` seconds.
        """
        reason = "it was not given to a node"
        try:
            async with asyncio.timeout(patience):
                while True:
                    with self._failures(f"Kubernetes does not tell about the pod {name}"):
                        status = (await self._api.read_namespaced_pod(name, self._namespace)).status
                    if status.phase == "Running":
                        return
                    for container in status.container_statuses or []:
                        if container.state.waiting is not None:
                            reason = f"{container.state.waiting.reason}: {container.state.waiting.message}"
                            if container.state.waiting.reason in _HOPELESS:
                                raise ConfigError(f"the sandbox's pod cannot start: {reason}")
                    if status.phase in ("Failed", "Succeeded"):
                        raise InfrastructureError(f"the sandbox's pod ended at once: {status.reason} {status.message}")
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise InfrastructureError(f"the sandbox's pod did not start within {patience:g} s: {reason}") from None

    async def attach(self, name: str) -> Any:
        """A web socket with the standard streams of a pod."""
        with self._failures(f"cannot attach to the pod {name}"):
            connecting = await type(self._api)(self._streams).connect_get_namespaced_pod_attach(
                name, self._namespace, stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False
            )
            return await connecting.__aenter__()

    async def forbid_network(self) -> None:
        """A policy for pods without network; it stays for the next ones."""
        rules = {"podSelector": {"matchLabels": {_NO_NETWORK: "true"}}, "policyTypes": ["Ingress", "Egress"]}
        policy = {"metadata": {"name": _NO_NETWORK}, "spec": rules}
        networking = import_module("kubernetes_asyncio.client").NetworkingV1Api(self._client)
        with self._failures("Kubernetes made no network policy for pods without network"):
            try:
                await networking.create_namespaced_network_policy(self._namespace, policy)
            except self._refused as refused:
                if refused.status != 409:
                    raise

    @contextmanager
    def _failures(self, doing: str) -> Iterator[None]:
        """What we may not do, or asked wrongly, is the user's to mend; the rest may pass."""
        with failures(doing):
            try:
                yield
            except self._refused as refused:
                if refused.status in (400, 401, 403, 404, 422):
                    raise ConfigError(f"{doing}: {refused}") from refused
                raise


async def _demultiplex(socket: Any, wire: PumpedWire) -> None:
    """Feeds the wire: the first byte of a message is the number of its stream."""
    async for message in socket:
        if isinstance(message.data, bytes) and len(message.data) > 1:
            if message.data[0] == _STDOUT:
                wire.feed(message.data[1:])
            else:
                wire.feed_error(message.data[1:])
