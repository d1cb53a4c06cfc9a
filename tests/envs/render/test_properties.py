"""What every renderer promises: the next prompt starts with exactly what was sampled, and nothing breaks the parser."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import ConfigError, Message
from envs.render import ByteRenderer, Renderer
from envs.render.family import FamilyRenderer
from envs.render.template import TemplateRenderer
from envs.tokenizer import load_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{# tools, reasoning_content #}{% if tools %}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS = ["byte", "chat template", "smollm2", "qwen3", "glm-4.5", "gpt-oss", "llama-3"]
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "½", "parameters": {"type": "object", "properties": {}}},
}
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>", "<|end|>", '{"name": "', "\n\n", ""]
# Neither half surrogates, nor the bytes that SmolLM2 has no tokens for.
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x04\x06\x13\x14\x16\x1d", max_codepoint=0x3FFFF)
TEXT = st.text(LETTERS, max_size=12) | st.sampled_from(MARKS)


@st.composite
def answers(draw: st.DrawFn) -> Message:
    message: Message = {"role": "assistant", "content": draw(TEXT)}
    if draw(st.booleans()):
        message["reasoning_content"] = draw(TEXT)
    if draw(st.booleans()):
        arguments = json.dumps(draw(st.dictionaries(st.text(LETTERS, max_size=3), st.integers() | TEXT, max_size=2)))
        function = {"name": "add", "arguments": arguments}
        message["tool_calls"] = [{"id": "call_0", "type": "function", "function": function}]  # type: ignore[list-item]
    return message


ADDED = st.lists(
    st.fixed_dictionaries({"role": st.just("user"), "content": TEXT})
    | st.fixed_dictionaries({"role": st.just("tool"), "content": TEXT, "name": st.just("add")}),
    min_size=1,
    max_size=3,
)


@st.composite
def turns(draw: st.DrawFn) -> tuple[Message | list[float], int | None, list[Message]]:
    """A message that the model says or a list of tokens (as shares of the vocabulary), how many tokens before its end
    it was cut off, and what is added then."""
    said = draw(answers() | st.lists(st.floats(0, 0.999), max_size=12))
    return said, draw(st.none() | st.integers(1, 6)), draw(ADDED)  # type: ignore[return-value]


@pytest.fixture(scope="session")
def renderer_of(
    family_renderer: Callable[..., FamilyRenderer],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Callable[[str, str], Renderer]:
    folder = tmp_path_factory.mktemp("chatml")
    family_renderer("qwen3")._tokenizer.backend.save(str(folder / "tokenizer.json"))

    def make(kind: str, retention: str) -> Renderer:
        if kind == "byte":
            return ByteRenderer()
        if kind in ("chat template", "smollm2"):
            where: Path = folder if kind == "chat template" else request.getfixturevalue("smollm2_file")
            tokenizer = load_tokenizer(where)
            return TemplateRenderer(tokenizer, tokenizer.templates or {"default": CHATML}, retention=retention)  # type: ignore[arg-type]
        return family_renderer(kind, retention)

    return make


def sampled(renderer: Renderer, said: Any, cut: int | None) -> list[int]:
    ids = [int(share * renderer.vocab_size) for share in said] if isinstance(said, list) else renderer.answer(said)
    return ids if cut is None else ids[:-cut]


@pytest.mark.parametrize("retention", ["template", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_only_grows_by_exact_tokens(
    renderer_of: Callable[[str, str], Renderer], kind: str, retention: str
) -> None:
    renderer = renderer_of(kind, retention)
    tools = [TOOL]

    @settings(max_examples=25)
    @given(TEXT, st.lists(turns(), min_size=1, max_size=4))
    def check(question: str, conversation: list[Any]) -> None:
        messages: list[Message] = [{"role": "user", "content": question}]
        prompt = renderer.prompt(messages, tools)
        for said, cut, added in conversation:
            ids = sampled(renderer, said, cut)
            message = renderer.parse(ids, prompt_ids=prompt, tools=tools)
            assert json.loads(json.dumps(message)) == message
            json.dumps(message, ensure_ascii=False).encode()
            assert renderer.text(ids).encode() is not None
            messages += [message, *added]
            extended = renderer.extend(prompt, ids, added, tools)
            if extended is None:
                whole = not isinstance(said, list) and "<" not in json.dumps(said)
                assert retention == "template" or not whole, "an answer that ends where it should can be continued"
                extended = renderer.prompt(messages, tools)
            else:
                assert extended[: len(prompt) + len(ids)] == [*prompt, *ids]
                assert len(extended) > len(prompt) + len(ids)
            prompt = extended

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_is_heard(renderer_of: Callable[[str, str], Renderer], kind: str) -> None:
    renderer = renderer_of(kind, "template")

    @settings(max_examples=25)
    @given(st.text(st.characters(categories=["L", "N", "Zs"], max_codepoint=0x3FFFF), max_size=20))
    def check(text: str) -> None:
        said: Message = {"role": "assistant", "content": text.strip()}
        ids = renderer.answer(said)
        assert ids[-1] in renderer.stop_ids
        assert renderer.parse(ids) == said

    check()


@pytest.mark.parametrize("kind", ["qwen3", "glm-4.5", "gpt-oss"])
def test_a_fresh_prompt_of_a_family_can_be_written_for_whatever_was_sampled(
    renderer_of: Callable[[str, str], Renderer], kind: str
) -> None:
    renderer = renderer_of(kind, "template")

    @settings(max_examples=25)
    @given(st.lists(st.integers(0, renderer.vocab_size + 300), max_size=20))
    def check(ids: list[int]) -> None:
        message = renderer.parse(ids)
        try:
            renderer.prompt([{"role": "user", "content": "?"}, message, {"role": "user", "content": "!"}])
        except ConfigError as error:
            pytest.fail(str(error))

    check()
