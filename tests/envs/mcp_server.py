"""A small MCP server over stdio, or over HTTP on the port that is its argument."""

import os
import sys

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("numbers")
kept: list[int] = []


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def keep(number: int) -> str:
    """Keeps a number and says all that were kept."""
    kept.append(number)
    return " ".join(map(str, kept))


@server.tool()
def refuse() -> str:
    """Never works."""
    raise ToolError("not today")


@server.tool()
def crash() -> str:
    """Ends the server."""
    os._exit(3)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
