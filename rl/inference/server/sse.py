"""Server-sent events: answers that grow."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, TypeVar, cast

from aiohttp import web

from rl.inference.server.validation import Refused

T = TypeVar("T")

HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def send_events(request: web.Request, events: AsyncIterator[dict[str, Any]], error: Any) -> web.StreamResponse:
    """Sends objects as they come, then `[DONE]`.

    The answer begins with the first object, so what is refused until then is refused with its own status; later errors
    are an event themselves.

    Args:
        request: what is answered.
        events: the objects.
        error: makes the object that says a `Refused`.
    """
    async with closing(events):
        first = await anext(events)
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        await response.write(_event(first))
        try:
            async for event in events:
                await response.write(_event(event))
        except Refused as refused:
            await response.write(_event(error(refused)))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
    return response


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def closing(pieces: AsyncIterator[T]) -> AbstractAsyncContextManager[Any]:
    """Closes what yields `pieces` at the end of a block, so that it lets go at once of what it holds."""
    return aclosing(cast(AsyncGenerator[T, None], pieces))
