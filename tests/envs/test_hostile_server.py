"""A server that does everything wrong: every rollout ends exactly once, and no error becomes a reward."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from envs import (
    Environment,
    Evaluation,
    Harness,
    Journal,
    OpenAIClient,
    Rubric,
    Task,
    Taskset,
    Trajectory,
    evaluate,
    single_turn,
    tool_use,
)

Write = Callable[[asyncio.StreamWriter, int], Awaitable[None]]
"""What the server does with request number n: it gets the connection, and may close it."""

ROLLOUTS = 6


def http(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def answer(content: Any = "!", finish_reason: Any = "stop", **message: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 1}}).encode()


def sends(data: bytes, *, close: bool = False) -> Write:
    async def write(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(data)
        await writer.drain()
        if close:
            writer.close()

    return write


@pytest_asyncio.fixture
async def hostile() -> AsyncIterator[Callable[[Write], Awaitable[str]]]:
    """Starts a bare TCP server with a behaviour; gives its base URL."""
    servers: list[asyncio.Server] = []
    tasks: set[asyncio.Task[None]] = set()

    async def start(write: Write) -> str:
        numbers = iter(range(1_000_000))

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                while not writer.is_closing():
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length"))
                    await reader.readexactly(int(length.split(b":")[1]))
                    await write(writer, next(numbers))
            except (asyncio.IncompleteReadError, ConnectionError):
                pass  # the client went away, as it may
            finally:
                tasks.discard(task)
                writer.close()

        servers.append(await asyncio.start_server(talk, "127.0.0.1", 0))
        return f"http://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}/v1"

    yield start
    for server in servers:
        server.close()
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def correct(completion: str, answer: str) -> float:
    return float(completion == answer)


async def attack(
    url: str, tmp_path: Path, harness: Harness | None = None, timeout: float = 5.0, retries: int = 1
) -> Evaluation:
    """Evaluates against the server, and checks that every rollout ended once and is on disk as it ended."""
    tasks = Taskset({"eval": [Task.ask(f"t{i}", "?", "!") for i in range(ROLLOUTS)]})
    environment = Environment(tasks, harness or single_turn(), Rubric({correct: 1.0}))
    client = OpenAIClient(url, "m", api_key="", timeout=timeout, retries=retries, backoff=0.001, logprobs=True)
    ended: list[Trajectory] = []
    with Journal(tmp_path / "rollouts.jsonl") as journal:

        def keep(trajectory: Trajectory) -> None:
            ended.append(trajectory)
            journal.append(trajectory)

        result = await asyncio.wait_for(evaluate(environment, client, on_trajectory=keep, retries=1), 60)
        await client.close()
        assert [t.to_json() for _, t in journal.read()] == [t.to_json() for t in ended]
    assert Counter(t.task.id for t in ended) == {f"t{i}": 1 for i in range(ROLLOUTS)}
    for trajectory in result.trajectories:
        assert (trajectory.reward is None) == (trajectory.failure is not None)
        assert trajectory.failure is None or trajectory.rewards == {}
    return result


GARBAGE = {
    "binary": http(200, bytes(range(256)) * 40),
    "text": http(200, b"<html>It works!</html>"),
    "no body": http(200, b""),
    "null": http(200, b"null"),
    "no choices": http(200, b'{"choices": []}'),
    "a list": http(200, b"[1, 2]"),
    "brackets": http(200, b"[" * 200_000),
    "a long number": http(200, b'{"choices": ' + b"9" * 10_000 + b"}"),
    "content is a number": http(200, answer(7)),
    "content is a list": http(200, answer([{"type": "text", "text": "!"}])),
    "message is a text": http(200, b'{"choices": [{"message": "!"}]}'),
    "given up": http(200, answer("!", "abort")),
    "nameless call": http(200, answer(None, tool_calls=[{"function": {}}])),
    "call of nothing": http(200, answer(None, tool_calls=[None])),
    "log-probability NaN": http(
        200, answer().replace(b'"finish_reason"', b'"logprobs": {"content": [{"logprob": NaN}]}, "finish_reason"')
    ),
    "no gzip": http(200, b"not gzip", "Content-Encoding: gzip"),
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "endless header": b"HTTP/1.1 200 X\r\nA: " + b"a" * 100_000,
    "to itself": http(302, b"", "Location: /v1/chat/completions"),
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_is_no_answer(what: str, hostile: Any, tmp_path: Path) -> None:
    result = await attack(await hostile(sends(GARBAGE[what], close=True)), tmp_path)
    assert {t.failure.kind for t in result.trajectories if t.failure} == {"infrastructure"}
    assert result.summary()["scored"] == 0
    assert all(t.attempts == 2 for t in result.trajectories), "it was begun again once, as asked"


BROKEN = {
    "half a body": http(200, answer()[:20], length=len(answer())),
    "half a stream": b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n" + answer()[:30],
    "bad chunk": b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n" + answer(),
    "half a head": b"HTTP/1.1 200 X\r\nContent-",
    "nothing": b"",
    "429 for ever": http(429, b"slow down"),
    "500 for ever": http(500, b"\xff\xfe"),
    "503 and far away": http(503, b"", "Retry-After: 9999"),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_what_breaks_off_is_no_answer(what: str, hostile: Any, tmp_path: Path) -> None:
    result = await attack(await hostile(sends(BROKEN[what], close=True)), tmp_path)
    assert result.summary()["failures"] == {"infrastructure": ROLLOUTS}


async def test_silence_ends_with_the_time(hostile: Any, tmp_path: Path) -> None:
    async def silent(writer: asyncio.StreamWriter, number: int) -> None:
        await asyncio.sleep(60)

    async def drip(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x")
            await asyncio.sleep(0.05)

    for behaviour in (silent, drip):
        result = await attack(await hostile(behaviour), tmp_path / behaviour.__name__, timeout=0.3)
        assert result.summary()["failures"] == {"infrastructure": ROLLOUTS}
        assert all("within 0.3 s" in t.failure.message for t in result.trajectories if t.failure)


async def test_a_storm_that_passes_costs_nothing(hostile: Any, tmp_path: Path) -> None:
    storm = [http(429, b"", "Retry-After: 0.01"), http(500, b"oops"), b"", BROKEN["half a body"], GARBAGE["not HTTP"]]
    random.Random(0).shuffle(storm := storm * 8)

    async def stormy(writer: asyncio.StreamWriter, number: int) -> None:
        await sends(storm[number] if number < len(storm) else http(200, answer()), close=number < len(storm))(writer, 0)

    result = await attack(await hostile(stormy), tmp_path, retries=30)
    assert [t.reward for t in result.trajectories] == [1.0] * ROLLOUTS


async def test_a_server_that_does_anything_at_any_time(hostile: Any, tmp_path: Path) -> None:
    bad = [*GARBAGE.values(), *BROKEN.values()]
    chance = random.Random(1)

    async def moody(writer: asyncio.StreamWriter, number: int) -> None:
        good = chance.random() < 0.3
        await sends(http(200, answer()) if good else chance.choice(bad), close=not good)(writer, number)

    result = await attack(await hostile(moody), tmp_path)
    scored = [t.reward for t in result.trajectories if t.reward is not None]
    assert set(scored) == {1.0}, "an error is no reward, of 0 neither"
    assert len(scored) < ROLLOUTS


ODD = {
    "a megabyte": ("x" * 1_000_000, 0.0),
    "NUL and escapes": ("\x00\x1b[2J\x07", 0.0),
    "half a surrogate pair": ("\ud800", 0.0),
    "nothing": (None, 0.0),
    "right": ("!", 1.0),
}


@pytest.mark.parametrize("what", ODD)
async def test_whatever_the_model_says_is_an_answer(what: str, hostile: Any, tmp_path: Path) -> None:
    content, reward = ODD[what]
    result = await attack(await hostile(sends(http(200, answer(content)))), tmp_path)
    assert [t.reward for t in result.trajectories] == [reward] * ROLLOUTS
    assert result.trajectories[0].completion == (content or "")


CALLS = {
    "no JSON": ("search", "{oops", "Error"),
    "a list": ("search", "[1]", "Error"),
    "another type": ("search", '{"query": 3}', "Error"),
    "brackets": ("search", "[" * 100_000, "Error"),
    "binary": ("search", "\x00\ud800", "Error"),
    "unknown tool": ("rm -rf /", "{}", "Error: there is no tool 'rm -rf /'"),
    "a megabyte": ("search", json.dumps({"query": "x" * 1_000_000}), "x"),
}


@pytest.mark.parametrize("what", CALLS)
async def test_whatever_the_model_calls_is_answered(what: str, hostile: Any, tmp_path: Path) -> None:
    async def search(query: str) -> str:
        """Search.

        Args:
            query: words.
        """
        return query

    name, arguments, said = CALLS[what]
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    calling = http(200, answer(None, tool_calls=[call]))
    result = await attack(await hostile(sends(calling)), tmp_path, tool_use([search], max_turns=2))
    assert [t.reward for t in result.trajectories] == [0.0] * ROLLOUTS
    assert {t.stop for t in result.trajectories} == {"max_turns"}
    shown = [m["content"] or "" for t in result.trajectories for m in t.messages if m["role"] == "tool"]
    assert len(shown) == 2 * ROLLOUTS and all(text.startswith(said) and len(text) < 100_000 for text in shown)
