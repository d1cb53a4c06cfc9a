"""Reading a request's body and writing an answer."""

import json
from typing import Any

from aiohttp import web

from rl.inference.server.validation import Refused, parse_object


async def read(request: web.Request) -> dict[str, Any]:
    """The JSON object of a body; an empty body is an empty object.

    Only `application/json` is read: browsers send it to other sites only where those allow it, so that no page a user
    happens to look at can use a server on their machine.

    Raises:
        Refused: when there is something else.
    """
    raw = await request.read()
    if not raw:
        return {}
    if request.content_type != "application/json":
        raise Refused(
            f"the body is {request.content_type}; expected application/json "
            "(curl: -H 'Content-Type: application/json')",
            status=415,
        )
    return parse_object(raw)


def reply(data: Any, status: int = 200) -> web.Response:
    """An answer in JSON, in ASCII: it holds whatever a model wrote, lone surrogates too."""
    text = json.dumps(data, separators=(",", ":"))
    return web.Response(body=text.encode(), status=status, content_type="application/json")
