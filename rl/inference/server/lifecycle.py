"""A server's life: it listens, it drains, it ends."""

import asyncio
import errno
import signal
import socket
from collections.abc import Callable

from aiohttp import web

from envs.errors import ConfigError
from rl.inference.server.service import SERVICE

_AFTER_ABORT = 10.0
"""Seconds that answers get to leave after what they wait for was aborted."""


class Server:
    """An application that listens at a port.

    Use `start`; or run one until a signal ends it with `serve`.

    Attributes:
        url: where it listens, with the port it has.
    """

    def __init__(self, app: web.Application, runner: web.AppRunner, site: web.SockSite) -> None:
        self._app, self._runner, self._site = app, runner, site
        host, port = runner.addresses[0][:2]
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"

    @classmethod
    async def start(cls, app: web.Application, listener: socket.socket | None = None) -> "Server":
        """Listens.

        Args:
            app: what answers.
            listener: what `bound` gave; by default any free port of 127.0.0.1.
        """
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        site = web.SockSite(runner, bound() if listener is None else listener, backlog=4096)
        await site.start()
        return cls(app, runner, site)

    async def stop(self, *, drain: float = 0.0) -> None:
        """Takes nothing new, gives what is under way `drain` seconds, aborts the rest: it answers with what it has."""
        service = self._app[SERVICE]
        service.draining = True
        await self._site.stop()
        if not await _within(drain, lambda: not service.under_way):
            await service.engine.resume()  # a paused engine would keep what it is told to end
            await service.abort(None)
            await _within(_AFTER_ABORT, lambda: not service.under_way)
        await self.end()

    async def end(self) -> None:
        """Closes every connection."""
        await self._runner.cleanup()


def bound(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Takes a port, without listening yet.

    Args:
        host: the address of a network interface; "0.0.0.0" is all of them.
        port: 0 takes any that is free.

    Raises:
        ConfigError: when the port is taken, or the address is none of this machine's.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port is {port}; expected 0 … 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just left is free
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is taken; name another one with port=…, or port=0 for any free one"
            ) from error
        raise ConfigError(f"cannot listen at host={host} port={port}: {error}") from error
    return listener


async def serve(
    app: web.Application, listener: socket.socket, *, drain: float, ready: Callable[[Server], None]
) -> None:
    """Listens until SIGTERM or SIGINT, then ends in order; a second signal does not wait for anything.

    Args:
        app: what answers.
        listener: what `bound` gave.
        drain: see `Server.stop`.
        ready: is told once the server listens.
    """
    loop, signals = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    signalled = asyncio.Queue[None]()
    for number in signals:
        loop.add_signal_handler(number, signalled.put_nowait, None)
    try:
        server = await Server.start(app, listener)
        ready(server)
        await signalled.get()
        stopping, again = asyncio.create_task(server.stop(drain=drain)), asyncio.create_task(signalled.get())
        await asyncio.wait((stopping, again), return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if stopping.done():
            await stopping
        else:
            stopping.cancel()
            await server.end()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _within(seconds: float, true: Callable[[], bool]) -> bool:
    """Whether something becomes true in that time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not true() and loop.time() < end:
        await asyncio.sleep(0.02)
    return true()
