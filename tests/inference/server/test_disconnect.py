"""A client that leaves frees its slots: seen with sockets that are closed in the middle."""

import asyncio
import json
from typing import Any

import pytest
import pytest_asyncio

from envs.render import ByteRenderer
from rl.inference.jax_engine import JaxEngine
from rl.inference.server.app import make_app
from rl.inference.server.lifecycle import Server
from rl.inference.server.service import SERVICE, Service

pytestmark = pytest.mark.asyncio(loop_scope="session")

ENDLESS = {"max_new_tokens": 500, "ignore_eos": True}


async def sent(server: Server, path: str, fields: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(fields).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


async def until(true: Any) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


@pytest_asyncio.fixture(loop_scope="session")
async def service(engine: JaxEngine) -> Any:
    """A server of its own over the engine, and what it knows."""
    app = make_app(engine, ByteRenderer(), model="tiny")
    server = await Server.start(app)
    yield app[SERVICE], server
    await server.stop()


def busy(engine: JaxEngine) -> int:
    return sum(not request.over for lane in engine._lanes for request in lane.requests)


CASES = {
    "one": ("/generate", {"input_ids": [1, 2], "sampling_params": ENDLESS}, 1),
    "a group": ("/generate", {"input_ids": [[1, 2], [3]], "sampling_params": {**ENDLESS, "n": 3}}, 6),
    "a stream": ("/generate", {"input_ids": [1, 2], "sampling_params": ENDLESS, "stream": True}, 1),
    "streams": ("/generate", {"input_ids": [1], "sampling_params": {**ENDLESS, "n": 4}, "stream": True}, 4),
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "a"}], "ignore_eos": True, "stream": True, "n": 2},
        2,
    ),
    "completion": ("/v1/completions", {"prompt": [1], "max_tokens": 500, "ignore_eos": True}, 1),
}


@pytest.mark.parametrize("case", CASES)
async def test_who_leaves_while_tokens_are_drawn_frees_the_slots(case: str, engine: JaxEngine, service) -> None:
    path, fields, completions = CASES[case]
    state, server = service
    reader, writer = await sent(server, path, fields)
    if fields.get("stream"):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    await until(lambda: busy(engine) == completions)
    await engine.pause("in_place")  # what is not freed now would stay
    try:
        assert state.under_way == completions
        writer.transport.abort()
        await until(lambda: state.under_way == 0)
        assert busy(engine) == 0 and state.counters.disconnects == 1
    finally:
        await engine.resume()
    assert state.counters.completion_tokens == 0


async def test_who_leaves_while_waiting_is_never_sampled(engine: JaxEngine, service) -> None:
    state, server = service
    await engine.pause("in_place")
    try:
        _, writer = await sent(server, "/generate", {"input_ids": [1, 2], "sampling_params": {**ENDLESS, "n": 20}})
        await until(lambda: state.under_way == 20)
        writer.close()  # with a FIN, as a process does that ends in order
        await until(lambda: state.under_way == 0)
    finally:
        await engine.resume()
    assert busy(engine) == 0 and state.counters.disconnects == 1


async def test_half_a_request_does_no_harm(service: tuple[Service, Server]) -> None:
    state, server = service
    host, port = server.url.removeprefix("http://").split(":")
    for half in (
        b"POST /gen",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"\x16\x03\x01\0\r\n\r\n",
    ):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(half)
        await writer.drain()
        writer.transport.abort()
    reader, writer = await sent(server, "/generate", {"input_ids": [1], "sampling_params": {"max_new_tokens": 1}})
    assert (await asyncio.wait_for(reader.readline(), 20)).startswith(b"HTTP/1.1 200")
    writer.close()
    assert state.under_way == 0
