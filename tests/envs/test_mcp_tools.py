"""Tools of real MCP servers: in this process, as a command, over HTTP."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from mcp.server import MCPServer

from envs import (
    ConfigError,
    Environment,
    InfrastructureError,
    Rubric,
    ScriptedClient,
    Task,
    Taskset,
    Trajectory,
    run_task,
    tool_use,
)
from envs.clients.scripted import tool_call
from envs.errors import MissingPackageError
from envs.mcp_tools import MCPTools
from envs.tools import call_tool

SCRIPT = Path(__file__).with_name("mcp_server.py")


def make_server() -> MCPServer:
    server = MCPServer("notes")
    notes: list[str] = []

    @server.tool()
    def note(text: str) -> str:
        """Writes a note down and reads all of them."""
        notes.append(text)
        return ", ".join(notes)

    return server


async def drive(tools: Any, *replies: Any) -> Trajectory:
    task = Task.ask("a", "Compute")
    environment = Environment(Taskset({"train": [task]}), tool_use(tools, max_turns=9), Rubric({}))
    return await run_task(environment, task, ScriptedClient(replies), retries=0)


def results(record: Trajectory) -> list[str | None]:
    assert record.failure is None, record.failure
    return [message["content"] for message in record.messages if message["role"] == "tool"]


@pytest_asyncio.fixture
async def url() -> AsyncIterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(port)], stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            break
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


async def test_a_command_serves_all_rollouts_and_is_replaced_when_it_breaks_off() -> None:
    tools = MCPTools([sys.executable, str(SCRIPT)])
    calls = [
        tool_call("add", '{"a": 1, "b": 2}'),
        tool_call("add", '{"a": "x", "b": 2}'),
        tool_call("add", "[1]"),
        tool_call("refuse", "{}"),
        tool_call("keep", '{"number": 5}'),
    ]
    first = results(await drive([tools], *calls, "done"))
    assert first[0] == "3" and first[3] is not None and first[3].startswith("Error: ") and "not today" in first[3]
    assert first[1] is not None and first[1].startswith("Error: ") and "valid integer" in first[1]
    assert first[2] == "Error: the arguments of add must be a JSON object with a, b; found [1]."
    assert results(await drive([tools], tool_call("keep", '{"number": 6}'), "done")) == ["5 6"]

    broken = await drive([tools], tool_call("crash", "{}"), "done")
    assert broken.failure is not None and broken.failure.kind == "infrastructure"
    assert results(await drive([tools], tool_call("keep", '{"number": 7}'), "done")) == ["7"]
    await tools.close()


async def test_a_server_over_http(url: str) -> None:
    tools = MCPTools(url, only=["add"])
    assert results(await drive([tools], tool_call("add", '{"a": 20, "b": 22}'), tool_call("keep", "{}"), "done")) == [
        "42", "Error: there is no tool 'keep'. The tools are: add.",
    ]  # fmt: skip
    await tools.close()


@pytest.mark.parametrize(("shared", "expected"), [(True, "one, two"), (False, "two")])
async def test_a_server_in_this_process_is_shared_or_not(shared: bool, expected: str) -> None:
    tools = MCPTools(make_server, shared=shared)
    assert results(await drive([tools], tool_call("note", '{"text": "one"}'), "done")) == ["one"]
    assert results(await drive([tools], tool_call("note", '{"text": "two"}'), "done")) == [expected]
    await tools.close()


async def test_many_rollouts_at_once_use_one_connection() -> None:
    made: list[MCPServer] = []

    def make() -> MCPServer:
        made.append(make_server())
        return made[-1]

    tools = MCPTools(make)
    calls = [tool_call("note", '{"text": "x"}'), "done"]
    records = await asyncio.gather(*(drive([tools], *calls) for _ in range(20)))
    assert len(made) == 1 and max(len(str(results(record)[0])) for record in records) == len("x, " * 20) - 2
    await tools.close()


async def test_the_schema_is_the_servers() -> None:
    async with MCPTools(make_server).connect() as (tool,):
        assert tool.schema["function"]["name"] == "note"
        assert tool.schema["function"]["description"] == "Writes a note down and reads all of them."
        assert tool.parameters["properties"]["text"]["type"] == "string" and tool.parameters["required"] == ["text"]
        told = await call_tool({"note": tool}, {"name": "note", "arguments": "not JSON"}, None)
        assert told.startswith("Error: the arguments of note are not valid JSON")


UNREACHABLE: dict[str, Callable[[], Any]] = {
    "no such command": lambda: ["no-such-program"],
    "not a server": lambda: [sys.executable, "-c", "print('hello')"],
    "nobody there": lambda: "http://127.0.0.1:9/mcp",
}


@pytest.mark.parametrize("server", UNREACHABLE)
async def test_a_server_that_cannot_be_reached_is_infrastructure(server: str) -> None:
    with pytest.raises(InfrastructureError, match="cannot connect to the MCP server"):
        async with MCPTools(UNREACHABLE[server]()).connect():
            pass


async def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"has no tool \['sub'\]; it has \['note'\]"):
        async with MCPTools(make_server, only=["sub"]).connect():
            pass
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(MissingPackageError, match=r"install it with `pip install 'upswing\[mcp\]'`"):
        MCPTools(make_server)
