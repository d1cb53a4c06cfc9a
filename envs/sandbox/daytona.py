"""Sandboxes at Daytona (https://daytona.io, or your own), by way of its client: `pip install 'upswing[daytona]'`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from envs.sandbox.base import Limits
from envs.sandbox.owner import LABEL, MARK, crashed, owner
from envs.sandbox.remote import client_of, failures, gigabytes, made, minutes, warden_command
from envs.sandbox.warded import WardedSandbox
from envs.sandbox.wire import PumpedWire

_SESSION = "upswing"
_START_SECONDS = 300.0  # an image that Daytona does not have yet is fetched first


@dataclass(frozen=True)
class Daytona:
    """Makes sandboxes at Daytona. Its client finds the key in `DAYTONA_API_KEY`, and another server than Daytona's own
    in `DAYTONA_API_URL`.

    Attributes:
        image: an image of a registry, with Python 3.
        python: the command that starts Python in the image.
    """

    image: str = "python:3.12-slim"
    python: str = "python3"

    async def start(self, limits: Limits) -> WardedSandbox:
        """A new sandbox. Its working folder is `/tmp/work`; Daytona ends it at the deadline, and limits memory and disk
        to whole gigabytes.

        Raises:
            ConfigError: the client is missing, or Daytona does not take its key or the image.
            InfrastructureError: it did not start.
        """
        daytona = client_of("Daytona", "daytona", "daytona")
        with failures("Daytona's client has no access", daytona.DaytonaError):
            client = daytona.AsyncDaytona()
        lifetime = minutes(limits.deadline)
        wanted = daytona.CreateSandboxFromImageParams(
            image=self.image,
            labels={**MARK, LABEL: owner()},
            ephemeral=True,
            auto_stop_interval=lifetime,
            ttl_minutes=lifetime,
            network_block_all=limits.network == "none",
            resources=daytona.Resources(memory=gigabytes(limits.memory), disk=gigabytes(limits.disk)),
        )
        try:
            with failures("Daytona made no sandbox", *_wrong(daytona)):
                sandbox = await made(client.create(wanted, timeout=_START_SECONDS), client.delete)
        except BaseException:
            await client.close()
            raise

        async def send(data: bytes) -> None:
            await sandbox.process.send_session_command_input(_SESSION, command, data.decode())

        async def end() -> None:
            try:
                await client.delete(sandbox)
            finally:
                await client.close()

        wire = PumpedWire(send, end, text=True)
        try:
            with failures("Daytona did not start the sandbox's warden"):
                await sandbox.process.create_session(_SESSION)
                request = daytona.SessionExecuteRequest(
                    command=warden_command(limits, self.python, text=True), run_async=True, suppress_input_echo=True
                )
                command: Any = (await sandbox.process.execute_session_command(_SESSION, request)).cmd_id
        except BaseException:
            await wire.close()
            raise
        wire.until(sandbox.process.get_session_command_logs_async(_SESSION, command, wire.feed, wire.feed_error))
        return await WardedSandbox.over(wire, limits, what="Daytona")

    async def reap(self) -> int:
        """Deletes the sandboxes of owners that ran on this machine and crashed."""
        daytona = client_of("Daytona", "daytona", "daytona")
        count = 0
        with failures("Daytona does not list its sandboxes", *_wrong(daytona)):
            client = daytona.AsyncDaytona()
            try:
                async for sandbox in client.list(daytona.ListSandboxesQuery(labels=dict(MARK))):
                    if crashed(sandbox.labels.get(LABEL)):
                        await client.delete(sandbox)
                        count += 1
            finally:
                await client.close()
        return count


def _wrong(daytona: Any) -> tuple[type[BaseException], ...]:
    return (
        daytona.DaytonaAuthenticationError,
        daytona.DaytonaAuthorizationError,
        daytona.DaytonaBadRequestError,
        daytona.DaytonaValidationError,
    )
