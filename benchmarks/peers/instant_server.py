"""The server that rollouts are measured against: answers at once, or after a second, always the same. A script.

It prints its port and lives until its standard input ends. `/v1` answers at once, `/slow/v1` after a second. A request
that offers tools gets two turns with a call and then an answer. All answers carry tokens and log-probabilities.
`GET /waiting` tells how many requests `/slow/v1` holds.
"""

import asyncio
import contextlib
import json
import resource
import sys
from typing import Any

from aiohttp import web

QUESTION = "Reverse this text, and write nothing else: the quick brown fox jumps over the lazy dog"
ANSWER = QUESTION.partition(": ")[2][::-1]
LATENCY = 1.0
TOOL_TURNS = 2
TOKENS = 20


def raise_files() -> None:
    """Allows as many connections as the system does."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def body(message: dict[str, Any], finish_reason: str) -> bytes:
    logprobs = {"content": [{"token": "ab", "logprob": -0.123456 - i / 7, "bytes": None} for i in range(TOKENS)]}
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    choice |= {"logprobs": logprobs, "token_ids": list(range(1000, 1000 + TOKENS))}
    answer = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": "instant", "choices": [choice]}
    usage = {"prompt_tokens": 30, "completion_tokens": TOKENS, "total_tokens": 30 + TOKENS}
    return json.dumps({**answer, "usage": usage, "prompt_token_ids": list(range(2000, 2030))}).encode()


CALL = {"id": "call_0", "type": "function", "function": {"name": "lookup", "arguments": '{"word": "fox"}'}}
FINAL = body({"content": ANSWER}, "stop")
CALLING = body({"content": None, "tool_calls": [CALL]}, "tool_calls")


async def serve() -> None:
    waiting = 0

    async def complete(request: web.Request) -> web.Response:
        asked = json.loads(await request.read())
        results = sum(message["role"] == "tool" for message in asked["messages"])
        calls = bool(asked.get("tools")) and results < TOOL_TURNS
        return web.Response(body=CALLING if calls else FINAL, content_type="application/json")

    async def slow(request: web.Request) -> web.Response:
        nonlocal waiting
        waiting += 1
        await request.read()
        await asyncio.sleep(LATENCY)
        waiting -= 1
        return web.Response(body=FINAL, content_type="application/json")

    async def count(request: web.Request) -> web.Response:
        return web.json_response(waiting)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_post("/slow/v1/chat/completions", slow)
    app.router.add_get("/waiting", count)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=8192).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until the other end of the pipe closes
    await runner.cleanup()


if __name__ == "__main__":
    raise_files()
    asyncio.run(serve())
