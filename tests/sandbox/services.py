"""Sandboxes of Kubernetes and of hosted services, with their own Python clients. `make test-services` runs it.

Kubernetes' client talks to a server of ours, on a real socket, that answers as the API's reference has it
(`cluster.py`). Of E2B, Modal, Daytona and Prime Intellect, which nobody can run at home, the clients are checked: that
they have what we call, and take the arguments that we give. NOTHING HERE HAS RUN AGAINST A REAL CLUSTER OR SERVICE.
"""

import asyncio
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cluster import Cluster

from envs import ConfigError, InfrastructureError
from envs.sandbox import E2B, Backend, Daytona, Kubernetes, Limits, Modal, Prime, SandboxPool
from envs.sandbox.owner import LABEL, MARK
from envs.sandbox.repl import PythonREPL

LIMITS = Limits(wall=20, cpu=20, memory=2**28, processes=32, disk=2**25, output=1000, deadline=120)


@pytest_asyncio.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """A cluster that `Kubernetes(...)` finds; no pod is left in it afterwards."""
    cluster = Cluster(tmp_path)
    monkeypatch.setattr(
        "kubernetes_asyncio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(await cluster.start())
    )
    yield cluster
    left = list(cluster.pods)
    await cluster.stop()
    assert left == []


async def test_a_pod_is_a_sandbox(cluster: Cluster, tmp_path: Path) -> None:
    sandbox = await Kubernetes(python=sys.executable).start(LIMITS)
    (pod,) = cluster.pods.values()
    assert pod["spec"]["securityContext"]["runAsUser"] == 1000 and pod["spec"]["automountServiceAccountToken"] is False
    assert pod["metadata"]["labels"]["upswing-no-network"] == "true" and cluster.policies == ["upswing-no-network"]

    result = await sandbox.exec("cat; echo err >&2; exit 3", stdin=bytes(range(256)) * 4000)
    assert (result.code, result.stdout, result.stderr) == (3, (bytes(range(256)) * 4)[:1000], b"err\n")
    assert (await sandbox.exec("sleep 60", wall=0.2)).limit == "wall"
    await sandbox.write("a/b", b"x" * 3_000_000)
    assert len(await sandbox.read("a/b")) == 3_000_000
    await sandbox.download("a", tmp_path / "a")
    assert (tmp_path / "a" / "b").stat().st_size == 3_000_000
    repl = PythonREPL(sandbox, sys.executable)
    await repl.run("x = 20")
    assert await repl.run("x + 22") == "42\n"
    await sandbox.close()
    assert cluster.pods == {}
    with pytest.raises(InfrastructureError, match="the kubernetes sandbox is closed"):
        await sandbox.exec("true")


async def test_a_pod_that_goes_away_is_infrastructure(cluster: Cluster) -> None:
    sandbox = await Kubernetes(python=sys.executable).start(LIMITS)
    running = asyncio.create_task(sandbox.exec("sleep 60", wall=60))
    await asyncio.sleep(0.2)
    cluster.processes[next(iter(cluster.pods))].kill()
    with pytest.raises(InfrastructureError, match="the kubernetes sandbox ended by itself"):
        await running
    await sandbox.close()


async def test_pods_of_a_pool(cluster: Cluster) -> None:
    pool = SandboxPool(Kubernetes(python=sys.executable), LIMITS, most=4)

    async def one(number: int) -> bytes:
        async with pool.sandbox() as sandbox:
            return (await sandbox.exec(f"echo {number}")).stdout

    assert await asyncio.gather(*(one(n) for n in range(8))) == [f"{n}\n".encode() for n in range(8)]


async def test_orphans_are_reaped_and_the_living_left_alone(cluster: Cluster) -> None:
    sandbox = await Kubernetes(python=sys.executable).start(LIMITS)
    gone = subprocess.run(
        [sys.executable, "-c", "from envs.sandbox.owner import owner; print(owner())"], capture_output=True, text=True
    ).stdout.strip()
    for name, by in (("orphan", gone), ("elsewhere", "0123456789ab-7-1")):
        cluster.pods[name] = {"metadata": {"name": name, "labels": {**MARK, LABEL: by}}, "spec": {"containers": []}}
    assert await Kubernetes().reap() == 1
    assert "orphan" not in cluster.pods and cluster.pods.pop("elsewhere")
    assert (await sandbox.exec("echo alive")).stdout == b"alive\n"
    await sandbox.close()


async def test_why_no_pod_starts(cluster: Cluster) -> None:
    cluster.waiting = ("ErrImagePull", "no such image")
    with pytest.raises(ConfigError, match="pod cannot start: ErrImagePull: no such image"):
        await Kubernetes().start(LIMITS)
    cluster.waiting = ("ContainerCreating", "soon")
    with pytest.raises(InfrastructureError, match=r"did not start within 0\.3 s: ContainerCreating: soon"):
        await Kubernetes(patience=0.3).start(LIMITS)
    config = cluster.folder / "kubeconfig"
    config.write_text(config.read_text().replace("secret", "wrong"))
    with pytest.raises(ConfigError, match=r"network policy.*401"):
        await Kubernetes().start(LIMITS)
    config.unlink()
    with pytest.raises(ConfigError, match="no Kubernetes cluster is configured"):
        await Kubernetes().start(LIMITS)


def takes(function: object, *arguments: object, **named: object) -> None:
    """The function would take these."""
    inspect.signature(function).bind(*arguments, **named)  # type: ignore[arg-type]


def test_the_client_of_e2b_has_what_we_call() -> None:
    import e2b
    from e2b.sandbox_async.commands.command import Commands
    from e2b.sandbox_async.commands.command_handle import AsyncCommandHandle

    takes(e2b.AsyncSandbox.create, template=None, timeout=60, metadata={}, allow_internet_access=False)
    options = {"background": True, "stdin": True, "user": "root", "timeout": 0, "retain_output": False}
    takes(Commands.run, None, "command", on_stdout=print, on_stderr=print, **options)
    takes(Commands.send_stdin, None, 7, b"data")
    takes(AsyncCommandHandle.wait, None)
    assert isinstance(AsyncCommandHandle.pid, property)
    pages = e2b.AsyncSandbox.list(query=e2b.SandboxQuery(metadata=dict(MARK)), api_key="e2b_" + "0" * 40)
    assert pages.has_next is True and inspect.iscoroutinefunction(pages.next_items)
    assert {"sandbox_id", "metadata"} <= set(inspect.signature(e2b.SandboxInfo).parameters)
    assert all(issubclass(e, Exception) for e in (e2b.AuthenticationException, e2b.TemplateException))


def test_the_client_of_modal_has_what_we_call() -> None:
    import modal

    from envs.sandbox.modal import _wrong

    takes(modal.App.lookup.aio, "upswing", create_if_missing=True)
    takes(modal.Sandbox.create.aio, app=None, image=None, timeout=60, memory=(128, 256), block_network=True, tags={})
    takes(modal.Sandbox.exec.aio, None, "python3", "-c", "", text=False)
    takes(modal.Sandbox.terminate.aio, None)
    takes(modal.Sandbox.list.aio, tags={})
    takes(modal.Sandbox.get_tags.aio, None)
    takes(modal.Image.from_registry, "python:3.12-slim")
    takes(modal.io_streams.StreamWriter.write, None, b"")
    takes(modal.io_streams.StreamWriter.drain.aio, None)
    assert hasattr(modal.io_streams.StreamReader, "__aiter__")
    assert len(_wrong(modal)) == 4


def test_the_client_of_daytona_has_what_we_call() -> None:
    import daytona
    from daytona._async.process import AsyncProcess

    from envs.sandbox.daytona import _wrong

    resources = daytona.Resources(memory=1, disk=1)
    wanted = daytona.CreateSandboxFromImageParams(
        image="python:3.12-slim",
        labels=dict(MARK),
        ephemeral=True,
        auto_stop_interval=2,
        ttl_minutes=2,
        network_block_all=True,
        resources=resources,
    )
    takes(daytona.AsyncDaytona.create, None, wanted, timeout=300.0)
    takes(daytona.AsyncDaytona.delete, None, "sandbox")
    takes(daytona.AsyncDaytona.list, None, daytona.ListSandboxesQuery(labels=dict(MARK)))
    takes(daytona.AsyncDaytona.close, None)
    request = daytona.SessionExecuteRequest(command="true", run_async=True, suppress_input_echo=True)
    takes(AsyncProcess.create_session, None, "session")
    takes(AsyncProcess.execute_session_command, None, "session", request)
    takes(AsyncProcess.send_session_command_input, None, "session", "command", "data")
    takes(AsyncProcess.get_session_command_logs_async, None, "session", "command", print, print)
    assert all(issubclass(error, daytona.DaytonaError) for error in _wrong(daytona))


def test_the_client_of_prime_intellect_has_what_we_call() -> None:
    import prime_sandboxes as prime

    from envs.sandbox.prime import _EVERYWHERE, _wrong

    request = prime.CreateSandboxRequest(
        name="upswing-1",
        docker_image="python:3.12-slim",
        vm=True,
        memory_gb=1,
        disk_size_gb=1,
        timeout_minutes=2,
        network_denylist=_EVERYWHERE,
        labels=["upswing=sandbox"],
    )
    client = prime.AsyncSandboxClient
    takes(client.create, None, request)
    takes(client.delete, None, "id")
    takes(client.wait_for_creation, None, "id")
    takes(client.open_process, None, "id", "command")
    takes(client.list, None, labels=[], page=1, exclude_terminated=True)
    takes(client.aclose, None)
    takes(prime.AsyncSandboxProcess.write_stdin, None, b"")
    assert {"sandboxes", "has_next"} <= set(prime.SandboxListResponse.model_fields)
    assert {"id", "labels"} <= set(prime.Sandbox.model_fields)
    assert all(issubclass(error, Exception) for error in _wrong(prime))


@pytest.mark.parametrize("backend", [E2B(), Modal(), Daytona(), Prime()], ids=lambda b: type(b).__name__)
async def test_without_a_key_it_is_the_configuration(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("E2B_API_KEY", "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "DAYTONA_API_KEY", "PRIME_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(ConfigError):
        await backend.start(LIMITS)
