"""Sandboxes at E2B (https://e2b.dev), by way of its client: `pip install 'upswing[e2b]'`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from envs.sandbox.base import Limits
from envs.sandbox.owner import LABEL, MARK, crashed, owner
from envs.sandbox.remote import client_of, failures, made, warden_command
from envs.sandbox.warded import WardedSandbox
from envs.sandbox.wire import PumpedWire


@dataclass(frozen=True)
class E2B:
    """Makes sandboxes at E2B. Its client finds the key in `E2B_API_KEY`.

    How much memory and disk a sandbox has is a property of its template; `limits.memory` is kept by the warden.

    Attributes:
        template: a template of your account with Python 3; "" for E2B's own.
        python: the command that starts Python there.
    """

    template: str = ""
    python: str = "python3"

    async def start(self, limits: Limits) -> WardedSandbox:
        """A new sandbox. Its working folder is `/tmp/work`; E2B ends it at the deadline.

        Raises:
            ConfigError: the client is missing, or E2B does not take its key or the template.
            InfrastructureError: it did not start.
        """
        e2b = client_of("E2B", "e2b", "e2b")
        wrong = (e2b.AuthenticationException, e2b.InvalidArgumentException, e2b.TemplateException)
        with failures("E2B made no sandbox", *wrong):
            sandbox = await made(
                e2b.AsyncSandbox.create(
                    template=self.template or None,
                    timeout=math.ceil(limits.deadline),
                    metadata={**MARK, LABEL: owner()},
                    allow_internet_access=limits.network == "host",
                ),
                lambda sandbox: sandbox.kill(),
            )

        async def send(data: bytes) -> None:
            await sandbox.commands.send_stdin(process.pid, data)

        wire = PumpedWire(send, sandbox.kill, text=True)
        try:
            with failures("E2B did not start the sandbox's warden"):
                process: Any = await sandbox.commands.run(
                    warden_command(limits, self.python, text=True),
                    background=True,
                    stdin=True,
                    user="root",
                    on_stdout=wire.feed,
                    on_stderr=wire.feed_error,
                    timeout=0,  # as long as the sandbox
                    retain_output=False,
                )
        except BaseException:
            await wire.close()
            raise
        wire.until(process.wait())
        return await WardedSandbox.over(wire, limits, what="E2B")

    async def reap(self) -> int:
        """Ends the sandboxes of owners that ran on this machine and crashed."""
        e2b = client_of("E2B", "e2b", "e2b")
        count = 0
        with failures("E2B does not list its sandboxes", e2b.AuthenticationException):
            pages = e2b.AsyncSandbox.list(query=e2b.SandboxQuery(metadata=dict(MARK)))
            while pages.has_next:
                for found in await pages.next_items():
                    if crashed(found.metadata.get(LABEL)):
                        await e2b.AsyncSandbox.kill(found.sandbox_id)
                        count += 1
        return count
