"""A tokenizer and a chat template that say what `ByteRenderer` says."""

import pytest

from envs.render import ByteRenderer
from envs.render.byte_tokenizer import byte_tokenizer
from envs.render.template import TemplateRenderer
from envs.types import Message, ToolSchema

TOOL: ToolSchema = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}
CALL: Message = {
    "role": "assistant",
    "content": "wait",
    "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
}
CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "hello\n  wörld 🙂\x00"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "1 + 1"}],
    [{"role": "user", "content": "1"}, CALL, {"role": "tool", "tool_call_id": "call_0", "content": "2"}],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("tools", [[], [TOOL]])
def test_conversations_have_the_same_ids(messages: list[Message], tools: list[ToolSchema]) -> None:
    tokenizer = byte_tokenizer()
    assert TemplateRenderer(tokenizer, tokenizer.templates).prompt(messages, tools) == ByteRenderer().prompt(
        messages, tools
    )


def test_every_byte_is_its_own_id() -> None:
    tokenizer = byte_tokenizer()
    text = "".join(map(chr, range(0x500)))
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.vocab_size == 264
    assert tokenizer.encode("<|end|><|system|><|user|><|assistant|><|tool|><|261|>") == [256, 257, 258, 259, 260, 261]
    assert tokenizer.end_ids == (256,)
