"""Sandboxes for many rollouts: so many at once and no more, started again when starting fails."""

from __future__ import annotations

import asyncio
import random
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from envs.errors import ConfigError, InfrastructureError
from envs.sandbox.base import Backend, Limits, Sandbox


class SandboxPool:
    """Gives out sandboxes of one backend.

    A sandbox is for one rollout: it is closed when it comes back, never given to another. Before the first one starts,
    what earlier runs that crashed left behind is removed.

        pool = SandboxPool(Bubblewrap(), most=32)
        async with pool.sandbox() as sandbox:
            print((await sandbox.exec("echo hello")).text())

    Args:
        backend: makes them; by default bubblewrap.
        limits: what each may use.
        most: how many there may be at once; who comes later waits.
        starting: how many may be starting at once.
        retries: how often starting is tried again, after waiting longer each time.
        backoff: seconds before the first repetition; doubles with each.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        limits: Limits = Limits(),
        *,
        most: int = 64,
        starting: int = 16,
        retries: int = 3,
        backoff: float = 0.2,
    ) -> None:
        if most < 1 or starting < 1 or retries < 0:
            raise ConfigError(
                f"SandboxPool(most={most}, starting={starting}, retries={retries}); expected at least 1, 1, 0"
            )
        if backend is None:
            from envs.sandbox.bubblewrap import Bubblewrap

            backend = Bubblewrap()
        self.backend, self.limits = backend, limits
        self._most, self._starting, self._retries, self._backoff = most, starting, retries, backoff
        # One pair of semaphores per event loop: an environment is evaluated in one, and later again in another.
        self._rooms: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[asyncio.Semaphore, asyncio.Semaphore]
        ] = weakref.WeakKeyDictionary()
        self._reaped = False

    @asynccontextmanager
    async def sandbox(self, limits: Limits | None = None) -> AsyncIterator[Sandbox]:
        """A new sandbox, closed afterwards.

        Raises:
            InfrastructureError: it could not be started, after all repetitions.
            ConfigError: it cannot be started on this machine.
        """
        room, starting = self._room()
        async with room:
            async with starting:
                sandbox = await self._start(limits or self.limits)
            try:
                yield sandbox
            finally:
                await sandbox.close()

    def _room(self) -> tuple[asyncio.Semaphore, asyncio.Semaphore]:
        loop = asyncio.get_running_loop()
        if loop not in self._rooms:
            self._rooms[loop] = asyncio.Semaphore(self._most), asyncio.Semaphore(self._starting)
        return self._rooms[loop]

    async def _start(self, limits: Limits) -> Sandbox:
        if not self._reaped:
            self._reaped = True
            await self.backend.reap()
        for attempt in range(self._retries + 1):
            try:
                return await self.backend.start(limits)
            except InfrastructureError:
                if attempt == self._retries:
                    raise
            await asyncio.sleep(self._backoff * 2**attempt * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")
