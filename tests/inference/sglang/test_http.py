"""Real connections to a small server that answers, refuses, talks nonsense, breaks off and stays silent."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from rl.inference.engine import EngineError
from rl.inference.sglang.http import Http, Rejected, Unreachable

ASKED = web.AppKey("asked", list[str])


async def break_off(request: web.Request) -> web.Response:
    request.app[ASKED].append(request.path)
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def flaky(request: web.Request) -> web.Response:
    return await break_off(request) if len(request.app[ASKED]) < 2 else web.json_response({"fine": 1})


async def silent(request: web.Request) -> web.Response:
    await asyncio.sleep(0.5)
    return web.Response()


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for event in (await request.json())["events"]:
        await response.write(f"data: {event}\n\n".encode())
    return response


@pytest_asyncio.fixture
async def app() -> AsyncIterator[tuple[str, list[str]]]:
    app = web.Application()
    app[ASKED] = asked = []
    app.router.add_get("/ok", fine)
    app.router.add_get("/nothing", nothing)
    app.router.add_post("/words", words)
    app.router.add_get("/page", page)
    app.router.add_post("/refused", refused)
    app.router.add_get("/flaky", flaky)
    app.router.add_post("/breaks", break_off)
    app.router.add_get("/silent", silent)
    app.router.add_post("/stream", stream)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    await runner.cleanup()


async def refused(request: web.Request) -> web.Response:
    asked = await request.json()
    return web.json_response(asked["body"], status=asked["status"])


async def fine(request: web.Request) -> web.Response:
    return web.json_response({"a": [1, None]})


async def nothing(request: web.Request) -> web.Response:
    return web.Response()


async def words(request: web.Request) -> web.Response:
    return web.Response(text="done")


async def page(request: web.Request) -> web.Response:
    return web.Response(text="<html>", content_type="text/html")


@pytest_asyncio.fixture
async def http() -> AsyncIterator[Http]:
    http = Http(timeout=5.0)
    yield http
    await http.close()


async def test_answers(http: Http, app: tuple[str, list[str]]) -> None:
    assert await http.get(app[0], "/ok") == {"a": [1, None]}
    assert await http.get(app[0], "/nothing") is None
    assert await http.post(app[0], "/words", words=True) == "done"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "too long"}}, "too long"),
        ({"success": False, "message": "no such file"}, "no such file"),
        ({"detail": [{"loc": ["rid"]}]}, '[{"loc": ["rid"]}]'),
        (["?"], '["?"]'),
    ],
)
async def test_refusals_give_the_servers_reason(http: Http, app: tuple[str, list[str]], body: Any, said: str) -> None:
    with pytest.raises(Rejected, match="refused with status 400") as caught:
        await http.post(app[0], "/refused", {"body": body, "status": 400})
    assert (caught.value.status, caught.value.said) == (400, said)


async def test_what_is_no_json_is_shown(http: Http, app: tuple[str, list[str]]) -> None:
    with pytest.raises(EngineError, match="no JSON: '<html>'; is it an SGLang server"):
        await http.get(app[0], "/page")


async def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    http = Http()
    with pytest.raises(Unreachable, match=r"nobody answers at http.*does the server run") as caught:
        await http.post(url, "/generate")
    assert caught.value.refused
    await http.close()


async def test_a_get_is_tried_again_and_a_post_is_not(http: Http, app: tuple[str, list[str]]) -> None:
    url, asked = app
    assert await http.get(url, "/flaky") == {"fine": 1}
    assert asked == ["/flaky", "/flaky"]
    with pytest.raises(Unreachable, match="broke") as caught:
        await http.post(url, "/breaks")
    assert asked[2:] == ["/breaks"] and not caught.value.refused


async def test_silence_ends(http: Http, app: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.inference.sglang.http.GET_TRIES", 1)
    with pytest.raises(Unreachable, match=r"/silent said nothing for 0\.05 s"):
        await http.get(app[0], "/silent", timeout=0.05)


async def events(http: Http, url: str, *lines: str) -> list[Any]:
    return [event async for event in http.events(url, "/stream", {"events": lines})]


async def test_events(http: Http, app: tuple[str, list[str]]) -> None:
    url = app[0]
    assert await events(http, url, '{"a": 1}', '{"a": 2}', "[DONE]") == [{"a": 1}, {"a": 2}]
    with pytest.raises(Unreachable, match="broke off before the end"):
        await events(http, url, '{"a": 1}')
    with pytest.raises(Rejected, match="refused with status 503: gone"):
        await events(http, url, '{"error": {"message": "gone", "code": 503}}', "[DONE]")
    with pytest.raises(EngineError, match=r"no JSON: .\{."):
        await events(http, url, "{", "[DONE]")
