"""A Kubernetes API server as small as it gets, for tests: pods are processes of this machine.

It answers what `envs/sandbox/kubernetes.py` asks, as the API's reference has it (pods with status and labels, deletion,
label selectors, attaching by web socket with the protocol v4.channel.k8s.io, network policies), on a real socket. It
runs no container: the command of a pod runs as it is, in a folder of its own.
"""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from aiohttp import WSMsgType, web


class Cluster:
    """Attributes:
    pods: by name, as they were made.
    policies: names of network policies.
    waiting: why no pod can start (reason, message), if that is so.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.pods, self.policies = folder, dict[str, Any](), list[str]()
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.waiting: tuple[str, str] | None = None
        self._runner = web.AppRunner(self._app())

    async def start(self) -> Path:
        """The path of a configuration file for its clients."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": f"http://{host}:{port}"}}],
            "users": [{"name": "test", "user": {"token": "secret"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path = self.folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    async def stop(self) -> None:
        for name in list(self.pods):
            await self._end(name)
        await self._runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=2**24, middlewares=[_authorized])
        pods = "/api/v1/namespaces/default/pods"
        app.router.add_post(pods, self._create)
        app.router.add_get(pods, self._list)
        app.router.add_get(pods + "/{name}", self._read)
        app.router.add_delete(pods + "/{name}", self._delete)
        app.router.add_get(pods + "/{name}/attach", self._attach)
        app.router.add_post("/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", self._policy)
        return app

    async def _create(self, request: web.Request) -> web.Response:
        pod = await request.json()
        name, spec = pod["metadata"]["name"], pod["spec"]["containers"][0]
        self.pods[name] = pod
        if self.waiting is None:
            work = Path(tempfile.mkdtemp(dir=self.folder))
            env = {each["name"]: each["value"] for each in spec["env"]} | {"HOME": str(work), "TMPDIR": str(work)}
            self.processes[name] = await asyncio.create_subprocess_exec(
                *spec["command"],
                *spec["args"],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=work,
                env={"PATH": "/usr/local/bin:/usr/bin:/bin", **env},
            )
        return web.json_response(self._told(name), status=201)

    def _told(self, name: str) -> dict[str, Any]:
        """A pod with its status."""
        state = {"running": {}}
        if self.waiting is not None:
            state = {"waiting": {"reason": self.waiting[0], "message": self.waiting[1]}}
        status = {
            "phase": "Pending" if self.waiting else "Running",
            "containerStatuses": [
                {"name": "sandbox", "image": "", "imageID": "", "ready": True, "restartCount": 0, "state": state}
            ],
        }
        return {"apiVersion": "v1", "kind": "Pod", **self.pods[name], "status": status}

    async def _read(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response(self._told(name)) if name in self.pods else _not_found()

    async def _list(self, request: web.Request) -> web.Response:
        wanted = dict(pair.split("=") for pair in request.query["labelSelector"].split(","))
        found = [
            self._told(name) for name, pod in self.pods.items() if wanted.items() <= pod["metadata"]["labels"].items()
        ]
        return web.json_response({"apiVersion": "v1", "kind": "PodList", "items": found})

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.pods:
            return _not_found()
        told = self._told(name)
        await self._end(name)
        return web.json_response(told)

    async def _end(self, name: str) -> None:
        del self.pods[name]
        process = self.processes.pop(name, None)
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()

    async def _attach(self, request: web.Request) -> web.WebSocketResponse:
        name = request.match_info["name"]
        process = self.processes[name]
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        socket = web.WebSocketResponse(protocols=["v4.channel.k8s.io"], max_msg_size=2**20)
        await socket.prepare(request)

        async def pass_on(number: int, stream: asyncio.StreamReader) -> None:
            while piece := await stream.read(2**15):
                await socket.send_bytes(bytes([number]) + piece)

        streams = [asyncio.create_task(pass_on(n, s)) for n, s in ((1, process.stdout), (2, process.stderr))]

        async def close() -> None:
            await asyncio.gather(*streams)
            await socket.send_bytes(b"\x03" + json.dumps({"status": "Success"}).encode())
            await socket.close()

        ending = asyncio.create_task(close())
        async for message in socket:
            if message.type is WSMsgType.BINARY and message.data[0] == 0 and not process.stdin.is_closing():
                process.stdin.write(message.data[1:])
        process.stdin.close()  # stdinOnce
        await asyncio.wait([ending])
        return socket

    async def _policy(self, request: web.Request) -> web.Response:
        name = (await request.json())["metadata"]["name"]
        if name in self.policies:
            return web.json_response({"kind": "Status", "reason": "AlreadyExists", "code": 409}, status=409)
        self.policies.append(name)
        return web.json_response(await request.json(), status=201)


@web.middleware
async def _authorized(request: web.Request, handler: Any) -> web.StreamResponse:
    if request.headers.get("Authorization") != "Bearer secret":
        return web.json_response({"kind": "Status", "reason": "Unauthorized", "code": 401}, status=401)
    answer = await handler(request)
    assert isinstance(answer, web.StreamResponse)
    return answer


def _not_found() -> web.Response:
    return web.json_response({"kind": "Status", "reason": "NotFound", "code": 404}, status=404)
