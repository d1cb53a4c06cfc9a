"""Sandboxes at Prime Intellect (https://www.primeintellect.ai), by way of its client: `pip install
'upswing[prime-sandboxes]'`."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from envs.errors import ConfigError
from envs.sandbox.base import Limits
from envs.sandbox.owner import LABEL, MARK, crashed, owner
from envs.sandbox.remote import client_of, failures, gigabytes, made, minutes, warden_command
from envs.sandbox.warded import WardedSandbox
from envs.sandbox.wire import PumpedWire

_EVERYWHERE = ["0.0.0.0/0"]  # the service knows no IPv6
_MARKS = [f"{name}={value}" for name, value in MARK.items()]


@dataclass(frozen=True)
class Prime:
    """Makes sandboxes at Prime Intellect: virtual machines, since only these have commands whose input stays open. Its
    client finds the key in `PRIME_API_KEY`, or where `prime login` puts it.

    Attributes:
        image: an image of a registry, with Python 3.
        python: the command that starts Python in the image.
    """

    image: str = "python:3.12-slim"
    python: str = "python3"

    async def start(self, limits: Limits) -> WardedSandbox:
        """A new sandbox. Its working folder is `/tmp/work`; the service ends it at the deadline, and limits memory and
        disk to whole gigabytes.

        Raises:
            ConfigError: the client is missing, or its key or image is not taken.
            InfrastructureError: it did not start.
        """
        prime = client_of("Prime Intellect", "prime_sandboxes", "prime-sandboxes")
        wanted = prime.CreateSandboxRequest(
            name=f"upswing-{secrets.token_hex(6)}",
            docker_image=self.image,
            vm=True,
            memory_gb=gigabytes(limits.memory),
            disk_size_gb=gigabytes(limits.disk),
            timeout_minutes=minutes(limits.deadline),
            network_denylist=_EVERYWHERE if limits.network == "none" else None,
            labels=[*_MARKS, f"{LABEL}={owner()}"],
        )
        if not prime.Config().api_key:
            raise ConfigError("Prime Intellect wants a key: set PRIME_API_KEY, or run `prime login`")
        client = prime.AsyncSandboxClient()

        async def remove(sandbox: Any) -> None:
            await client.delete(sandbox.id)

        async def end() -> None:
            try:
                await remove(sandbox)
            finally:
                await client.aclose()

        try:
            with failures("Prime Intellect made no sandbox", *_wrong(prime)):
                sandbox = await made(client.create(wanted), remove)
        except BaseException:
            await client.aclose()
            raise

        async def send(data: bytes) -> None:
            await process.write_stdin(data)

        wire = PumpedWire(send, end)
        try:
            with failures("Prime Intellect did not start the sandbox's warden", prime.SandboxImagePullError):
                await client.wait_for_creation(sandbox.id)
                process: Any = await client.open_process(sandbox.id, warden_command(limits, self.python))
        except BaseException:
            await wire.close()
            raise
        wire.follow(process.stdout)
        wire.follow(process.stderr, errors=True)
        return await WardedSandbox.over(wire, limits, what="Prime Intellect")

    async def reap(self) -> int:
        """Deletes the sandboxes of owners that ran on this machine and crashed."""
        prime = client_of("Prime Intellect", "prime_sandboxes", "prime-sandboxes")
        left, page = [], 1
        with failures("Prime Intellect does not list its sandboxes", *_wrong(prime)):
            client = prime.AsyncSandboxClient()
            try:
                while True:
                    found = await client.list(labels=_MARKS, page=page, exclude_terminated=True)
                    left += [each.id for each in found.sandboxes if crashed(_owner(each.labels))]
                    if not found.has_next:
                        break
                    page += 1
                for sandbox in left:
                    await client.delete(sandbox)
            finally:
                await client.aclose()
        return len(left)


def _owner(labels: list[str]) -> str:
    return next((label.partition("=")[2] for label in labels if label.startswith(f"{LABEL}=")), "")


def _wrong(prime: Any) -> tuple[type[BaseException], ...]:
    return (prime.UnauthorizedError, prime.PaymentRequiredError)
