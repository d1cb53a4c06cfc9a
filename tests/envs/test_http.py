"""What servers answer, byte by byte, and what becomes of the connections."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from envs.clients.http import Answer, Broken, Connections, Unreachable

Serve = Callable[..., Awaitable[Connections]]


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server that answers requests with the given bytes, one after the other, a few at a time; with "close" it
    closes the connection. `serve.seen` has the requests, with the number of their connection."""
    servers: list[asyncio.Server] = []
    opened: list[Connections] = []

    async def begin(*answers: bytes | str, step: int = 7) -> Connections:
        left, number = iter(answers), 0
        begin.seen = []  # type: ignore[attr-defined]

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal number
            mine = number = number + 1
            try:
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                    begin.seen.append((mine, head, await reader.readexactly(length)))  # type: ignore[attr-defined]
                    if (data := next(left)) == "close":
                        return
                    assert isinstance(data, bytes)
                    for start in range(0, len(data), step):
                        writer.write(data[start : start + step])
                        await writer.drain()
                        await asyncio.sleep(0)
            except (asyncio.IncompleteReadError, ConnectionError, StopIteration):
                pass
            finally:
                writer.close()

        servers.append(await asyncio.start_server(talk, "127.0.0.1", 0))
        port = servers[-1].sockets[0].getsockname()[1]
        opened.append(Connections(f"http://127.0.0.1:{port}/v1", {"X": "y"}, most=4, patience=5))
        return opened[-1]

    yield begin
    for connections in opened:
        await connections.close()
    for server in servers:
        server.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=1\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n"
ZIPPED = gzip.compress(b"hi" * 50)
ANSWERS = {
    "with a length": (OK, b"hi"),
    "in chunks": (CHUNKS, b"hello world"),
    "in chunks with a trailer": (CHUNKS[:-2] + b"A: b\r\n\r\n", b"hello world"),
    "after a hundred": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"hi"),
    "zipped": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(ZIPPED), ZIPPED),
        b"hi" * 50,
    ),
    "empty": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
}


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize("kind", ANSWERS)
async def test_answers_in_all_their_forms(serve: Serve, kind: str, step: int) -> None:
    raw, body = ANSWERS[kind]
    connections = await serve(raw, OK, step=step)
    assert (await connections.request("POST", "/v1/chat", b"question")).body == body
    assert (await connections.request("GET", "/v1/models")).body == b"hi"
    (one, head, question), (two, *_) = serve.seen  # type: ignore[attr-defined]
    assert (one, two, question) == (1, 1, b"question"), "the connection was kept"
    assert head.startswith(b"POST /v1/chat HTTP/1.1\r\nHost: 127.0.0.1:") and b"\r\nX: y\r\n" in head


async def test_the_end_of_a_connection_is_the_end_of_a_body_without_length() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\n\r\nall of it")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connections = Connections(f"http://127.0.0.1:{port}", {}, most=1, patience=5)
    for _ in range(2):
        assert await connections.request("GET", "/") == Answer(200, {"a": "2"}, b"all of it")
    await connections.close()
    server.close()


async def test_a_connection_that_the_server_closed_meanwhile_is_made_again(serve: Serve) -> None:
    connections = await serve(OK, "close", OK)
    await connections.request("GET", "/")
    assert (await connections.request("GET", "/")).body == b"hi"
    assert [number for number, *_ in serve.seen] == [1, 1, 2]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (OK + b"more", "more bytes than the answer was to have"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "an answer that is no HTTP: 'SSH-2.0-OpenSSH'"),
        (b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", "a header without a colon: 'nonsense'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "an answer of -1 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "invalid literal for int"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "invalid literal for int"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70_000, "the head of the answer does not end"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi", "incorrect header check"),
    ],
)
async def test_what_is_no_answer(serve: Serve, raw: bytes, why: str) -> None:
    connections = await serve(raw, step=100_000)
    with pytest.raises(Broken, match=why):
        await connections.request("GET", "/")


async def test_a_request_that_was_given_up_leaves_no_answer_behind(serve: Serve) -> None:
    connections = await serve(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", OK)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await connections.request("GET", "/")
    assert (await connections.request("GET", "/")).body == b"hi"
    assert [number for number, *_ in serve.seen] == [1, 2]  # type: ignore[attr-defined]


async def test_nobody_there_and_headers_that_would_smuggle() -> None:
    with pytest.raises(Unreachable):
        await Connections("http://127.0.0.1:9", {}, most=1, patience=5).request("GET", "/")
    with pytest.raises(ValueError, match="a header has a line break in it"):
        Connections("http://127.0.0.1:9", {"Authorization": "Bearer a\r\nX: y"}, most=1, patience=5)
