"""Tools out of MCP servers (Model Context Protocol), by way of the official SDK (`pip install 'upswing[mcp]'`)."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from envs.errors import ConfigError, InfrastructureError, MissingPackageError
from envs.tools import Tool, ToolFailure

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult

_START_SECONDS = 60.0
_REFUSED = (-32601, -32602)  # JSON-RPC: no such method, wrong parameters; what a model can do something about


class MCPTools:
    """The tools of an MCP server, for `tool_use([MCPTools(…), …])`.

        MCPTools("http://localhost:8000/mcp")            # a server somewhere
        MCPTools(["uvx", "mcp-server-time"])             # a command that speaks MCP over its stdin and stdout
        MCPTools(server)                                 # an `mcp.server.MCPServer` in this process
        MCPTools(make_server, shared=False)              # one of its own for every rollout, with its own state

    A server that cannot be reached, or breaks off, fails the rollout as infrastructure and is connected to anew by the
    next one. What a tool itself reports as an error is shown to the model.

    Args:
        server: a URL, a command, a server, a function that makes one of these, or anything else that `mcp.Client`
            takes.
        shared: whether all rollouts use one connection. A server that keeps state for its client needs one for each.
        only: names of the tools to offer; by default all.
        env: variables of a command besides the few that the SDK passes on.
        timeout: the most seconds a call may take.
        max_chars: results longer than this are cut, with a notice.

    Raises:
        MissingPackageError: if the SDK is not installed.
    """

    def __init__(
        self,
        server: Any,
        *,
        shared: bool = True,
        only: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        max_chars: int = 20_000,
    ) -> None:
        try:
            import mcp  # noqa: F401
        except ImportError as error:
            raise MissingPackageError(
                f"MCP servers need the SDK ({error}); install it with `pip install 'upswing[mcp]'`"
            ) from None
        self._server, self._env = server, env
        self._shared, self._only, self._timeout, self._max_chars = shared, tuple(only), timeout, max_chars
        self._open: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Connection] = weakref.WeakKeyDictionary()
        self._opening: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Sequence[Tool]]:
        """The server's tools, usable within the context.

        Raises:
            InfrastructureError: it cannot be reached, or is no MCP server.
            ConfigError: it lacks a tool of `only`.
        """
        if self._shared:
            yield self._tools(await self._shared_connection())
            return
        connection = await self._connection()
        try:
            yield self._tools(connection)
        finally:
            await connection.close()

    async def close(self) -> None:
        """Closes the shared connection of this event loop, which otherwise ends with the loop."""
        connection = self._open.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            await connection.close()

    async def _shared_connection(self) -> _Connection:
        loop = asyncio.get_running_loop()
        async with self._opening.setdefault(loop, asyncio.Lock()):
            connection = self._open.get(loop)
            if connection is None or connection.ended:
                connection = self._open[loop] = await self._connection()
            return connection

    async def _connection(self) -> _Connection:
        return await _Connection.open(_target(self._server, self._env))

    def _tools(self, connection: _Connection) -> list[Tool]:
        found = {tool.name: tool for tool in connection.listed}
        missing = [name for name in self._only if name not in found]
        if missing:
            raise ConfigError(f"the MCP server {connection.name} has no tool {missing}; it has {sorted(found)}")
        return [self._tool(connection, found[name]) for name in self._only or found]

    def _tool(self, connection: _Connection, listed: Any) -> Tool:
        async def call(**arguments: Any) -> str:
            return await connection.call(listed.name, arguments)

        schema = dict(listed.input_schema)
        return Tool(listed.name, listed.description or "", schema, call, None, (), self._timeout, self._max_chars)


class _Connection:
    """One open client. A task of its own keeps it: the SDK wants to be closed by the task that opened it, and puts
    what is raised in between into groups."""

    def __init__(self, target: Any) -> None:
        command = [target.command, *target.args] if hasattr(target, "command") else None
        self.name = " ".join(command) if command else target if isinstance(target, str) else type(target).__name__
        self.listed: Sequence[Any] = ()
        self._client: Client | None = None
        self._target = target
        self._closing = asyncio.Event()
        self._ready = asyncio.Event()
        self._broken: BaseException | None = None
        self._task = asyncio.create_task(self._keep())

    @classmethod
    async def open(cls, target: Any) -> _Connection:
        connection = cls(target)
        ready = asyncio.create_task(connection._ready.wait())
        await asyncio.wait({ready, connection._task}, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            connection._task.cancel()
        if connection.ended or not ready.done():
            problem = connection._broken or f"it did not answer within {_START_SECONDS:g} s"
            raise InfrastructureError(f"cannot connect to the MCP server {connection.name}: {_first(problem)}")
        return connection

    @property
    def ended(self) -> bool:
        return self._task.done() or self._task.cancelling() > 0

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        from mcp import MCPError

        if self.ended or self._client is None:
            raise InfrastructureError(f"the MCP server {self.name} is gone: {_first(self._broken)}")
        try:
            result = await self._client.call_tool(name, dict(arguments))
        except MCPError as error:
            if error.code in _REFUSED:
                raise ToolFailure(error.message) from None
            self._task.cancel()
            raise InfrastructureError(f"the MCP server {self.name} failed in '{name}': {error.message}") from error
        except Exception as error:
            self._task.cancel()
            raise InfrastructureError(f"the MCP server {self.name} broke off in '{name}': {_first(error)}") from error
        text = _text(result)
        if result.is_error:
            raise ToolFailure(text)
        return text

    async def close(self) -> None:
        self._closing.set()
        await asyncio.wait({self._task})

    async def _keep(self) -> None:
        from mcp import Client

        try:
            async with Client(self._target) as client:
                self._client = client
                self.listed = await _all_tools(client)
                self._ready.set()
                await self._closing.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whoever waits for this connection raises it
            self._broken = error


async def _all_tools(client: Client) -> list[Any]:
    page = await client.list_tools()
    tools = list(page.tools)
    while page.next_cursor:
        page = await client.list_tools(cursor=page.next_cursor)
        tools += page.tools
    return tools


def _target(server: Any, env: Mapping[str, str] | None) -> Any:
    """What `mcp.Client` is given."""
    from mcp import StdioServerParameters

    made = server() if callable(server) and not hasattr(server, "__aenter__") else server
    if isinstance(made, list | tuple):
        return StdioServerParameters(command=made[0], args=list(made[1:]), env=None if env is None else dict(env))
    return made


def _text(result: CallToolResult) -> str:
    """What a model reads: the text; of anything else what it is."""
    parts = [part.text if part.type == "text" else f"[{part.type}]" for part in result.content]
    if not parts and result.structured_content is not None:
        import json

        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)


def _first(error: object) -> str:
    """The first real error within groups of them, in words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
