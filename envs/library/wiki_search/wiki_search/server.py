"""The three tools as an MCP server, for any agent: `wiki-search-mcp`, or `python -m wiki_search.server`."""

import argparse
from typing import TYPE_CHECKING

from envs import ConfigError

from . import PYTHON, open_corpus
from .tools import make_tools

if TYPE_CHECKING:
    from mcp.server import MCPServer


def make_server(corpus: str = PYTHON, results: int = 5, section_chars: int = 1000) -> "MCPServer":
    """A server with the tools of the environment, over the same index. Arguments as for `load_environment`.

    Raises:
        ConfigError: if the SDK is not installed, or the corpus cannot be read.
    """
    try:
        from mcp.server import MCPServer
    except ImportError as error:
        raise ConfigError(f"an MCP server needs the SDK ({error}); install it with `pip install 'mcp>=2'`") from None
    server = MCPServer("wiki_search")
    for tool in make_tools(open_corpus(corpus, section_chars), results):
        server.tool()(tool)
    return server


def main() -> None:
    """Serves over stdin and stdout."""
    parser = argparse.ArgumentParser(prog="wiki-search-mcp", description=main.__doc__)
    parser.add_argument("--corpus", default=PYTHON, help="'python', or a folder of text, Markdown, HTML and RST files")
    parser.add_argument("--results", type=int, default=5, help="pages that a search returns")
    given = parser.parse_args()
    make_server(given.corpus, given.results).run("stdio")


if __name__ == "__main__":
    main()
