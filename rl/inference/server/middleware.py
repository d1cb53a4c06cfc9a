"""What happens around every route: the key, errors as JSON, counting, a line in the log."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from rl.inference.engine import EngineBusyError, EngineError
from rl.inference.server import native, openai
from rl.inference.server.requests import reply
from rl.inference.server.service import SERVICE
from rl.inference.server.validation import Refused

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

OPEN = ("/health", "/metrics")
"""Routes that need no key: what watches a server may not have it."""

log = logging.getLogger("rl.serve")


def keyed(key: str) -> Any:
    """Lets in who knows the key, as OpenAI's clients send it."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if request.path not in OPEN and not hmac.compare_digest(given.encode(), key.encode()):
            raise Refused("the key is missing or wrong; expected the header Authorization: Bearer KEY", status=401)
        return await handler(request)

    return middleware


@web.middleware
async def recorded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers errors in JSON, and counts and logs every answer."""
    counters, begun = request.app[SERVICE].counters, time.perf_counter()
    try:
        response = await _answered(request, handler)
    except (asyncio.CancelledError, ConnectionError):
        counters.disconnects += 1
        log.info("%s %s: the client left after %.3f s", request.method, request.path, time.perf_counter() - begun)
        raise
    seconds = time.perf_counter() - begun
    route = request.match_info.route.resource
    counters.answered("unknown" if route is None else route.canonical, response.status, seconds)
    log.info("%s %s %d %.3f s", request.method, request.path, response.status, seconds)
    return response


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as refused:
        return refusal(request, refused)
    except web.HTTPException as error:
        return refusal(request, Refused(_http_error(request, error), status=error.status))
    except EngineBusyError as error:
        return refusal(request, Refused(str(error), status=503, retry_after=1))
    except EngineError as error:
        return refusal(request, Refused(str(error), status=500))
    except ConnectionError:
        raise
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return refusal(request, Refused("the server failed; its log says why", status=500))


def refusal(request: web.Request, refused: Refused) -> web.Response:
    """The answer that says what is wrong, in the words of the protocol that the route belongs to."""
    if request.path.startswith("/v1/"):
        body = openai.error_body(refused)
    elif request.path.startswith("/update_weight"):
        body = {"success": False, "message": str(refused), **native.error_body(refused)}
    else:
        body = native.error_body(refused)
    response = reply(body, refused.status)
    if refused.retry_after is not None:
        response.headers["Retry-After"] = str(refused.retry_after)
    return response


def _http_error(request: web.Request, error: web.HTTPException) -> str:
    match error:
        case web.HTTPRequestEntityTooLarge():
            return f"the body is too large: {error.text}"
        case web.HTTPMethodNotAllowed():
            return f"{request.path} takes {', '.join(sorted(error.allowed_methods))}; found {request.method}"
        case web.HTTPNotFound():
            return f"there is no route {request.method} {request.path}; see docs/serving.md"
    return f"{error.status} {error.reason}"
