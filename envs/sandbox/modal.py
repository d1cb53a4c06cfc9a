"""Sandboxes at Modal (https://modal.com), by way of its client: `pip install 'upswing[modal]'`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from envs.sandbox.base import Limits
from envs.sandbox.owner import LABEL, MARK, crashed, owner
from envs.sandbox.remote import client_of, failures, made, warden_argv
from envs.sandbox.warded import WardedSandbox
from envs.sandbox.wire import PumpedWire


@dataclass(frozen=True)
class Modal:
    """Makes sandboxes at Modal. Its client finds the token where `modal setup` puts it, or in `MODAL_TOKEN_ID` and
    `MODAL_TOKEN_SECRET`.

    Attributes:
        image: an image of a registry, with Python 3.
        app: the Modal app they belong to; made if there is none of the name.
        python: the command that starts Python in the image.
    """

    image: str = "python:3.12-slim"
    app: str = "upswing-sandboxes"
    python: str = "python3"

    async def start(self, limits: Limits) -> WardedSandbox:
        """A new sandbox. Its working folder is `/tmp/work`; Modal ends it at the deadline, and limits its memory.

        Raises:
            ConfigError: the client is missing, or Modal does not take its token or the image.
            InfrastructureError: it did not start.
        """
        modal = client_of("Modal", "modal", "modal")
        megabytes = math.ceil((limits.memory + limits.disk) / 2**20) + 64  # the warden's, and the kernel's own
        with failures("Modal made no sandbox", *_wrong(modal)):
            app = await modal.App.lookup.aio(self.app, create_if_missing=True)
            sandbox = await made(
                modal.Sandbox.create.aio(
                    app=app,
                    image=modal.Image.from_registry(self.image),
                    timeout=math.ceil(limits.deadline),
                    memory=(min(megabytes, 128), megabytes),
                    block_network=limits.network == "none",
                    tags={**MARK, LABEL: owner()},
                ),
                lambda sandbox: sandbox.terminate.aio(),
            )

        async def send(data: bytes) -> None:
            process.stdin.write(data)
            await process.stdin.drain.aio()

        wire = PumpedWire(send, sandbox.terminate.aio)
        try:
            with failures("Modal did not start the sandbox's warden"):
                process: Any = await sandbox.exec.aio(*warden_argv(limits, self.python), text=False)
        except BaseException:
            await wire.close()
            raise
        wire.follow(process.stdout)
        wire.follow(process.stderr, errors=True)
        return await WardedSandbox.over(wire, limits, what="Modal")

    async def reap(self) -> int:
        """Ends the sandboxes of owners that ran on this machine and crashed."""
        modal = client_of("Modal", "modal", "modal")
        count = 0
        with failures("Modal does not list its sandboxes", *_wrong(modal)):
            async for sandbox in modal.Sandbox.list.aio(tags=dict(MARK)):
                if crashed((await sandbox.get_tags.aio()).get(LABEL)):
                    await sandbox.terminate.aio()
                    count += 1
        return count


def _wrong(modal: Any) -> tuple[type[BaseException], ...]:
    errors = modal.exception
    return (errors.AuthError, errors.InvalidError, errors.ImageBuildError, errors.PermissionDeniedError)
