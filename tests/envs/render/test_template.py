"""Plain chat templates: rendered as Hugging Face renders them, continued by exact tokens, read back."""

import datetime
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envs import ConfigError, Message
from envs.render.template import TemplateRenderer
from envs.tokenizer import load_tokenizer

Write = Callable[..., Path]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|other|>"]

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Knows tools and reasoning, and forgets the reasoning once the user has spoken again.
THINKING = """\
{%- set last = namespace(user=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content and loop.index0 > last.user %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}
{%- generation %}{{ m.content }}{% endgeneration %}
{%- for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if begin %}<think>
{% endif %}{% endif %}"""

TOOL = {"type": "function", "function": {"name": "add", "description": "Adds ½.", "parameters": {"type": "object"}}}
ASK: list[Message] = [{"role": "user", "content": "1 + 1?"}]
CALL: Message = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
}
RESULT: Message = {"role": "tool", "name": "add", "tool_call_id": "call_0", "content": "2"}


def said(content: str, **fields: Any) -> Message:
    return {"role": "assistant", "content": content, **fields}  # type: ignore[typeddict-item]


@pytest.fixture
def make(write_tokenizer: Write) -> Callable[..., TemplateRenderer]:
    def make(template: str, **arguments: Any) -> TemplateRenderer:
        tokenizer = load_tokenizer(write_tokenizer(SPECIAL, eos="<|im_end|>"))
        return TemplateRenderer(tokenizer, {"default": template}, **arguments)

    return make


Make = Callable[..., TemplateRenderer]


def test_smollm2_by_hand(smollm2_file: Path) -> None:
    tokenizer = load_tokenizer(smollm2_file)
    renderer = TemplateRenderer(tokenizer, tokenizer.templates)
    assert renderer.stop_ids == (2,)
    prompt = renderer.prompt([{"role": "system", "content": "Be"}, *ASK])
    head = [1, 9690, 198, 6077, 2, 198, 1, 4093, 198, 33, 1232, 216, 33, 47, 2, 198, 1, 520, 9531, 198]
    assert prompt == head, renderer.text(prompt)
    assert renderer.answer(said("Two")) == [10345, 2]
    extended = renderer.extend(prompt, [10345, 2], ASK)
    assert extended == [*prompt, 10345, 2, 198, 1, 4093, 198, 33, 1232, 216, 33, 47, 2, 198, 1, 520, 9531, 198]
    assert renderer.extend(prompt, [10345], ASK) == extended, "a completion that was cut off is ended"


@pytest.mark.parametrize("template", [PLAIN, THINKING])
def test_text_is_that_of_transformers(make: Make, template: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    conversations: list[list[Message]] = [
        ASK,
        [{"role": "system", "content": "naïve 🙂 <b>"}, *ASK, said("2", reasoning_content="Easy."), *ASK],
        [*ASK, said("", tool_calls=[*CALL["tool_calls"]], reasoning_content="Hm."), RESULT],
    ]
    for messages in conversations[: 2 if template == PLAIN else 3]:
        for tools in ([], [TOOL]) if template == THINKING else ([],):
            theirs, _ = render_jinja_template(
                conversations=[[_parsed(message) for message in messages]],
                tools=tools or None,
                chat_template=template,
                add_generation_prompt=True,
            )
            assert make(template)._text(messages, tools, speak=True) == theirs[0]


def _parsed(message: Message) -> dict[str, Any]:
    calls = [{**call, "function": {"name": "add", "arguments": {"a": 1}}} for call in message.get("tool_calls", ())]
    return {**message, **({"tool_calls": calls} if calls else {})}


def test_the_functions_that_templates_ask_for(make: Make) -> None:
    functions = (
        "{{ strftime_now('%Y') }}|{{ {'a': 'é<'} | tojson }}|{{ bos_token }}{{ eos_token }}|{{ mood }}|"
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}<|im_end|>"
    )
    renderer = make(functions, options={"mood": "gay"})
    text = renderer._text([*ASK, said("2"), *ASK])
    assert text == f'{datetime.datetime.now().year}|{{"a": "é<"}}|<|im_end|>|gay|1 + 1?2<|im_end|>'


def test_what_a_template_refuses(make: Make) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
    renderer = make(strict)
    with pytest.raises(ConfigError, match="refuses a conversation of system, user: no system"):
        renderer.prompt([{"role": "system", "content": ""}, *ASK])
    with pytest.raises(ConfigError, match="cannot be compiled: unexpected '%'"):
        make("{% if %")
    with pytest.raises(ConfigError, match="refuses a conversation of user: access to attribute '__class__'"):
        make("{{ messages.__class__.__mro__ }}")
    with pytest.raises(ConfigError, match="does not write what an assistant says as plain text"):
        make("{% for m in messages %}{{ m.content[0].text }}<|im_end|>{% endfor %}")
    with pytest.raises(ConfigError, match=r"has no chat template; give one: template=FILE\.jinja"):
        TemplateRenderer(renderer._tokenizer, {})


def test_where_nothing_ends_a_message(write_tokenizer: Write) -> None:
    tokenizer = load_tokenizer(write_tokenizer([]))
    with pytest.raises(ConfigError, match="nothing ends an assistant message"):
        TemplateRenderer(tokenizer, {"default": PLAIN.replace("<|im_end|>", "")})


def test_a_template_may_end_messages_otherwise_than_the_tokenizer_says(make: Make) -> None:
    renderer = make(PLAIN.replace("<|im_end|>", "<|other|>"))
    other, end = renderer._tokenizer.encode("<|other|><|im_end|>")
    assert renderer.stop_ids == (other, end)
    prompt = renderer.prompt(ASK)
    for last in (other, end):
        extended = renderer.extend(prompt, [last], ASK)
        assert extended is not None and extended[: len(prompt) + 2] == [*prompt, last, extended[len(prompt) + 1]]
        assert renderer.text(extended[len(prompt) + 1 :]).startswith("\n<|im_start|>user\n1 + 1?")


@pytest.mark.parametrize(
    ("message", "written"),
    [
        (said("2"), "2<|im_end|>"),
        (said(""), "<|im_end|>"),
        (said("2", reasoning_content="Easy."), "<think>\nEasy.\n</think>\n\n2<|im_end|>"),
        (CALL, '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|im_end|>'),
    ],
)
def test_answers_by_hand(make: Make, message: Message, written: str) -> None:
    renderer = make(THINKING)
    ids = renderer.answer(message)
    assert renderer.text(ids) == written
    assert renderer.parse(ids) == message
    assert renderer.parse(ids[:-1]) == message


@pytest.mark.parametrize(
    ("message", "written"),
    [
        (said("2", reasoning_content="Easy."), "Easy.\n</think>\n\n2<|im_end|>"),
        (said("2"), "\n</think>\n\n2<|im_end|>"),
    ],
)
def test_a_prompt_that_begins_the_thought(make: Make, message: Message, written: str) -> None:
    renderer = make(THINKING, options={"begin": True})
    assert renderer.text(renderer.prompt(ASK)).endswith("<|im_start|>assistant\n<think>\n")
    assert renderer.text(renderer.answer(message)) == written
    assert renderer.parse(renderer.answer(message)) == message
    assert renderer.parse(renderer._tokenizer.encode("Hm")) == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "Hm",
    }


def test_a_prompt_that_rules_thought_out(make: Make) -> None:
    thought = "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    closed = PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
    renderer = make(closed.replace("{{ m.content }}", thought + "{{ m.content }}"))
    assert renderer.text(renderer.answer(said("2"))) == "2<|im_end|>"
    with pytest.raises(ConfigError, match=r"is not said so \(reasoning where thinking is switched off\?\)"):
        renderer.answer(said("2", reasoning_content="Easy."))


def test_a_template_that_ends_twice(make: Make) -> None:
    renderer = make(PLAIN.replace("{% if add", "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}{% if add"))
    assert renderer.text(renderer.answer(said("2"))) == "2<|im_end|>"


def test_reasoning_and_tools_where_the_template_knows_neither(make: Make) -> None:
    renderer = make(PLAIN)
    assert renderer.text(renderer.answer(said("2", reasoning_content="Easy."))) == "2<|im_end|>"
    text = "<think>\nHm.\n</think>\n\n2"
    assert renderer.parse(renderer._tokenizer.encode(text)) == said(text)
    described = renderer.text(renderer.prompt([*ASK, CALL, RESULT], [TOOL]))
    assert described.startswith('<|im_start|>system\nTools:\n{"name": "add", "description": "Adds ½."')
    assert '<|im_start|>assistant\n<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|im_end|>' in described
    assert "<|im_start|>tool\n2<|im_end|>" in described


@pytest.mark.parametrize(
    ("retention", "user", "tool"), [("template", False, True), ("tool_cycle", False, True), ("all", True, True)]
)
def test_whose_reasoning_stays(make: Make, retention: str, user: bool, tool: bool) -> None:
    renderer = make(THINKING, retention=retention)
    prompt, answer = renderer.prompt(ASK), renderer.answer(said("2", reasoning_content="Easy."))
    assert (renderer.extend(prompt, answer, ASK) is not None) == user
    assert (renderer.extend(prompt, answer, [RESULT]) is not None) == tool
    assert renderer.extend(prompt, renderer.answer(said("2")), ASK) is not None, "nothing was thought"


def test_a_thought_that_was_cut_off_is_ended(make: Make) -> None:
    renderer = make(THINKING, retention="all")
    prompt, cut = renderer.prompt(ASK), renderer._tokenizer.encode("<think>\nLet me")
    extended = renderer.extend(prompt, cut, ASK)
    assert extended is not None and extended[: len(prompt) + len(cut)] == [*prompt, *cut]
    added = renderer.text(extended[len(prompt) + len(cut) :])
    assert added == "\n</think>\n\n<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"


def test_templates_that_cannot_continue_say_so(make: Make) -> None:
    no_tools = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    renderer = make(no_tools + PLAIN)
    assert renderer.extend(renderer.prompt(ASK), renderer.answer(said("2")), [RESULT]) is None
    secretive = PLAIN.replace("{{ m.content }}", "{{ m.content if loop.last or m.role != 'assistant' }}")
    assert make(secretive).extend(renderer.prompt(ASK), [], ASK) is None


def test_tools_may_have_a_template_of_their_own(write_tokenizer: Write) -> None:
    tokenizer = load_tokenizer(write_tokenizer(SPECIAL, eos="<|im_end|>"))
    renderer = TemplateRenderer(tokenizer, {"default": PLAIN, "tool_use": THINKING})
    assert "tojson" not in renderer.text(renderer.prompt(ASK))
    assert re.match(r'<\|im_start\|>system\n\{"type": "function"', renderer.text(renderer.prompt(ASK, [TOOL])))


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", '"x"', "[" * 2000, ""])
def test_arguments_that_are_no_object_are_shown_as_they_are(make: Make, arguments: str) -> None:
    call: Message = {
        **CALL,
        "tool_calls": [{**CALL["tool_calls"][0], "function": {"name": "f", "arguments": arguments}}],
    }
    renderer = make(PLAIN)
    assert f'"arguments": {arguments}' + "}</tool_call>" in renderer.text(renderer.prompt([*ASK, call]))
    make(THINKING).prompt([*ASK, call])
