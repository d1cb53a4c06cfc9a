"""Families that the package `renderers` knows, in tokens: what is written, sampled, read and continued."""

from collections.abc import Callable
from typing import Any

import pytest

from envs import ConfigError, Message
from envs.render.family import FamilyRenderer

Make = Callable[..., FamilyRenderer]

FAMILIES = ["qwen3", "glm-4.5", "gpt-oss", "llama-3"]
ASK: list[Message] = [{"role": "user", "content": "1 + 1?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds ½.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string"}}},
    },
}


def call(arguments: str = '{"a": 1, "s": "1"}', **fields: Any) -> Message:
    function = {"name": "add", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_0", "type": "function", "function": function}],  # type: ignore[list-item]
        **fields,  # type: ignore[typeddict-item]
    }


def said(content: str, **fields: Any) -> Message:
    return {"role": "assistant", "content": content, **fields}  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("family", "written"),
    [
        ("qwen3", "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"),
        ("glm-4.5", "[gMASK]<sop><|user|>\n1 + 1?<|assistant|>"),
        ("gpt-oss", "<|start|>user<|message|>1 + 1?<|end|><|start|>assistant<|channel|>analysis<|message|>"),
        (
            "llama-3",
            "<|start_header_id|>user<|end_header_id|>\n\n1 + 1?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_a_question_by_hand(family_renderer: Make, family: str, written: str) -> None:
    renderer = family_renderer(family)
    assert renderer.text(renderer.prompt(ASK)).endswith(written)
    assert renderer.text(renderer.prompt(ASK, [TOOL])).count("Adds ½.") == 1


@pytest.mark.parametrize(
    ("family", "message", "written"),
    [
        ("qwen3", said("2"), "<think>\n\n</think>\n\n2<|im_end|>"),
        ("qwen3", said("2", reasoning_content="Easy."), "<think>\nEasy.\n</think>\n\n2<|im_end|>"),
        (
            "qwen3",
            call(),
            '<think>\n\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "s": "1"}}\n</tool_call>'
            "<|im_end|>",
        ),
        ("glm-4.5", said("2"), "\n<think></think>\n2<|user|>"),
        ("glm-4.5", said("2", reasoning_content="Easy."), "\n<think>Easy.</think>\n2<|user|>"),
        (
            "glm-4.5",
            call(),
            "\n<think></think>\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n"
            "<arg_key>s</arg_key>\n<arg_value>1</arg_value>\n</tool_call><|observation|>",
        ),
        ("gpt-oss", said("2"), "<|end|><|start|>assistant<|channel|>final<|message|>2<|return|>"),
        (
            "gpt-oss",
            said("2", reasoning_content="Easy."),
            "Easy.<|end|><|start|>assistant<|channel|>final<|message|>2<|return|>",
        ),
        (
            "gpt-oss",
            call(),
            '<|end|><|start|>assistant to=functions.add<|channel|>commentary<|message|>{"a": 1, "s": "1"}<|call|>',
        ),
        ("llama-3", said("2"), "2<|eot_id|>"),
        ("llama-3", call(), '{"name": "add", "parameters": {"a": 1, "s": "1"}}<|eot_id|>'),
    ],
)
def test_answers_by_hand(family_renderer: Make, family: str, message: Message, written: str) -> None:
    """What a model would sample after the prompt, and that it is read as the message it says."""
    renderer = family_renderer(family)
    ids = renderer.answer(message)
    assert renderer.text(ids) == written
    assert ids[-1] in renderer.stop_ids
    assert renderer.parse(ids, prompt_ids=renderer.prompt(ASK), tools=[TOOL]) == message
    assert renderer.parse(ids, tools=[TOOL]) == message


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_goes_on_where_the_prompt_ends(family_renderer: Make, family: str) -> None:
    """Written into a conversation, the answer stands behind the prompt as it was sampled."""
    renderer = family_renderer(family)
    prompt, answer = renderer.prompt(ASK), renderer.answer(said("2"))
    whole = renderer._inner.render_ids([*ASK, said("2")])  # type: ignore[list-item]
    stop = len(prompt) + len(answer)
    if family == "gpt-oss":  # history leaves out the empty thought that the prompt has begun
        assert whole[-7:] == answer[1:]
    else:
        assert [*prompt, *answer][: len(whole)] == whole[:stop]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cut", [False, True])
def test_the_next_turn_starts_with_what_was_sampled(family_renderer: Make, family: str, cut: bool) -> None:
    renderer = family_renderer(family, retention="all")
    prompt, answer = renderer.prompt(ASK), renderer.answer(said("2", reasoning_content="Easy."))
    answer = answer[:-1] if cut else answer
    extended = renderer.extend(prompt, answer, [{"role": "user", "content": "naïve 🙂?"}])
    assert extended is not None and extended[: len(prompt) + len(answer)] == [*prompt, *answer]
    assert renderer.text(extended[len(prompt) + len(answer) :]).count("naïve 🙂?") == 1
    assert extended[-len(renderer._opening) :] == renderer._opening


@pytest.mark.parametrize("family", FAMILIES)
def test_tool_results_go_on_within_a_turn(family_renderer: Make, family: str) -> None:
    renderer = family_renderer(family)
    prompt, answer = renderer.prompt(ASK, [TOOL]), renderer.answer(call())
    extended = renderer.extend(prompt, answer, [{"role": "tool", "name": "add", "content": "2"}], [TOOL])
    assert extended is not None and extended[: len(prompt) + len(answer)] == [*prompt, *answer]


@pytest.mark.parametrize(
    ("family", "retention", "continues"),
    [
        ("qwen3", "template", False),
        ("qwen3", "tool_cycle", False),
        ("qwen3", "all", True),
        ("glm-4.5", "template", False),
        ("glm-4.5", "all", True),
        ("gpt-oss", "template", False),
        ("gpt-oss", "all", True),
        ("llama-3", "template", True),
    ],
)
def test_whose_reasoning_stays_when_the_user_speaks_again(
    family_renderer: Make, family: str, retention: str, continues: bool
) -> None:
    renderer = family_renderer(family, retention=retention)
    answer = renderer.answer(said("2", reasoning_content="Easy."))
    assert (renderer.extend(renderer.prompt(ASK), answer, ASK) is not None) == continues
    again = renderer.text(renderer.prompt([*ASK, said("2", reasoning_content="Easy."), *ASK]))
    assert "Easy." not in again


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_model_did_not_say_itself_is_rendered_anew(family_renderer: Make, family: str) -> None:
    renderer = family_renderer(family, retention="all")
    prompt, answer = renderer.prompt(ASK), renderer.answer(said("2"))
    assert renderer.extend(prompt, answer, [said("3"), *ASK]) is None
    assert renderer.extend(prompt, [*answer, answer[0]], ASK) is None or family == "glm-4.5"


def test_thinking_that_is_switched_off_cannot_be_shown(family_renderer: Make) -> None:
    renderer = family_renderer("qwen3", enable_thinking=False)
    assert renderer.text(renderer.prompt(ASK)).endswith("assistant\n<think>\n\n</think>\n\n")
    assert renderer.text(renderer.answer(said("2"))) == "2<|im_end|>"
    with pytest.raises(ConfigError, match="reasoning where thinking is switched off"):
        renderer.answer(said("2", reasoning_content="Easy."))


@pytest.mark.parametrize(
    ("family", "text", "calls"),
    [
        ("qwen3", "<tool_call>\nadd(1)\n</tool_call>", [("", "add(1)")]),
        ("qwen3", '<tool_call>{"name": ""}</tool_call>', [("", '{"name": ""}')]),
        ("qwen3", '<tool_call>{"name": "add"', [("", '{"name": "add"')]),
        ("glm-4.5", "<tool_call>add\n<arg_key>a</arg_key>\n</tool_call>", [("add", "{}")]),
        ("llama-3", '{"name": "add"', []),
    ],
)
def test_calls_that_went_wrong_are_calls_all_the_same(
    family_renderer: Make, family: str, text: str, calls: list[tuple[str, str]]
) -> None:
    renderer = family_renderer(family)
    message = renderer.parse(renderer._tokenizer.encode(text))
    found = [(made["function"]["name"], made["function"]["arguments"]) for made in message.get("tool_calls", [])]
    assert [name for name, _ in found] == [name for name, _ in calls]
    if family == "qwen3":
        assert found == calls


def test_what_no_parser_likes_is_text(family_renderer: Make) -> None:
    renderer = family_renderer("qwen3")
    text = f'<tool_call>{{"name": "f", "arguments": {"9" * 5000}}}</tool_call>'
    ids = renderer._tokenizer.encode(text)
    assert renderer.parse([*ids, renderer.stop_ids[0]]) == {"role": "assistant", "content": text}


def test_conversations_and_settings_that_do_not_fit(family_renderer: Make) -> None:
    with pytest.raises(ConfigError, match="llama-3 cannot write a conversation of no messages"):
        family_renderer("llama-3").prompt([])
    with pytest.raises(ConfigError, match=r"renderer 'qwen3' with {'enable_thinkin': False}"):
        family_renderer("qwen3", enable_thinkin=False)
    with pytest.raises(ConfigError, match="No renderer config registered for name='qwen33'"):
        FamilyRenderer(family_renderer("qwen3")._tokenizer, "qwen33")
    with pytest.raises(
        ConfigError, match=r"qwen3 is no 'llama-3' model: Special token '<\|begin_of_text\|>' not found"
    ):
        FamilyRenderer(family_renderer("qwen3")._tokenizer, "llama-3")


def test_tool_results_know_their_tool(family_renderer: Make) -> None:
    renderer = family_renderer("gpt-oss")
    result: Message = {"role": "tool", "tool_call_id": "call_0", "content": "2"}
    assert "<|start|>functions.add to=assistant" in renderer.text(renderer.prompt([*ASK, call(), result]))
