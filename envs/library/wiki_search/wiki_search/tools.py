"""The three tools: what a model may do with a corpus."""

import asyncio
from collections.abc import Awaitable, Callable

from .index import Index

Tool = Callable[..., Awaitable[str]]


def make_tools(index: Index, most_results: int = 5) -> tuple[Tool, Tool, Tool]:
    """`search_pages`, `view_sections` and `read_section` of a corpus.

    They answer in text; a page or section that does not exist is answered with what there is.
    """

    async def search_pages(query: str) -> str:
        """Search the titles and texts of all pages. Returns the titles of the best ones, one a line.

        Args:
            query: a few words; a name finds its page.
        """
        # Ten milliseconds for a long query: in a thread, so that other rollouts go on.
        found = await asyncio.to_thread(index.search, query, most_results)
        return "\n".join(found) or "No page fits. Try other words."

    async def view_sections(page: str) -> str:
        """List the sections of a page, one a line.

        Args:
            page: the title of the page, as search_pages returned it.
        """
        return "\n".join(index.sections(page)) or _no_page(page)

    async def read_section(page: str, section: str) -> str:
        """Read one section of a page.

        Args:
            page: the title of the page.
            section: the title of the section, as view_sections returned it.
        """
        text = index.read(page, section)
        if text is not None:
            return text
        known = index.sections(page)
        return f"Error: '{page}' has no section '{section}'. It has: {', '.join(known)}" if known else _no_page(page)

    def _no_page(page: str) -> str:
        close = index.search(page, 3)
        return f"Error: there is no page '{page}'. " + (
            f"Close to it: {', '.join(close)}" if close else "Search first."
        )

    return search_pages, view_sections, read_section
