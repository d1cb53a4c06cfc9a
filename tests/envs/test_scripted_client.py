import asyncio

import pytest

from envs import Completion, ConfigError, ScriptedClient
from envs.clients.scripted import tool_call
from envs.types import Message

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]


async def test_a_list_is_said_in_order_and_ends() -> None:
    whole = Completion({"role": "assistant", "content": "c"}, "length")
    client = ScriptedClient(["a", tool_call("f", "{}"), whole])
    completions = [await client.complete(HELLO) for _ in range(3)]
    assert [c.message["content"] for c in completions] == ["a", None, "c"]
    assert [c.finish_reason for c in completions] == ["stop", "tool_calls", "length"]
    with pytest.raises(ConfigError, match="the script has 3 replies and was asked for one more"):
        await client.complete(HELLO)
    await client.close()


async def test_a_function_sees_the_messages_and_may_wait() -> None:
    async def echo(messages: list[Message]) -> str:
        await asyncio.sleep(0)
        return f"{messages[-1]['content']}!"

    client = ScriptedClient(echo)
    assert (await client.complete(HELLO)).message["content"] == "Hello!"
    assert client.requests[0].messages == tuple(HELLO)
