"""A vocabulary learned from texts."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import ConfigError, Message
from envs.render import ByteRenderer
from envs.render.byte_tokenizer import byte_tokenizer
from envs.render.subword import FILE, SubwordRenderer, keep_vocabulary, learn_vocabulary, read_vocabulary
from envs.render.template import TemplateRenderer
from envs.types import ToolSchema

TEXTS = ["the default of `numpy.quantile` is 'linear'", "what is the default of `numpy.add`?", "numpy.add(x1, x2)"] * 3
LEARNED = SubwordRenderer(learn_vocabulary(TEXTS, 320))
MESSAGES: list[Message] = [
    {"role": "system", "content": "the default <|end|>"},
    {"role": "user", "content": "of `numpy.quantile`, wörld 🙂 12"},
]


def test_frequent_pieces_are_one_token_wherever_they_stand() -> None:
    assert 264 < LEARNED.vocab_size <= 320
    (name,) = LEARNED.encode("numpy")
    assert name >= 264 and LEARNED.text([name]) == "numpy"
    for text in ('{"page": "numpy.add"}', "`numpy`?", "a\nnumpy\n"):
        assert name in LEARNED.encode(text)
    assert LEARNED.encode("42") == [ord("4"), ord("2")]
    assert learn_vocabulary(iter(TEXTS), 320) == LEARNED.merges


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(), max_size=30))  # halves of surrogate pairs too
def test_every_text_can_be_written_and_read(text: str) -> None:
    ids = LEARNED.encode(text)
    assert all(token < 256 or 264 <= token < LEARNED.vocab_size for token in ids)
    assert LEARNED.text(ids) == ByteRenderer().text(ByteRenderer().encode(text))


def test_a_conversation_grows_by_exact_tokens_and_is_that_of_the_chat_template() -> None:
    prompt = LEARNED.prompt(MESSAGES)
    answer = LEARNED.answer({"role": "assistant", "content": "the default"})
    longer = LEARNED.extend(prompt, answer, MESSAGES[1:])
    assert longer[: len(prompt) + len(answer)] == [*prompt, *answer]
    assert LEARNED.texts(longer) == [
        "the default <|end|>",
        MESSAGES[1]["content"],
        "the default",
        MESSAGES[1]["content"],
    ]
    tokenizer = byte_tokenizer(LEARNED.merges)
    assert tokenizer.vocab_size == LEARNED.vocab_size
    told = [{**MESSAGES[0], "content": "the default"}, MESSAGES[1]]  # templates take a spelled end for an end
    assert TemplateRenderer(tokenizer, tokenizer.templates).prompt(told) == LEARNED.prompt(told)  # type: ignore[arg-type]


def test_a_run_keeps_its_vocabulary(tmp_path: Path) -> None:
    keep_vocabulary(LEARNED.merges, tmp_path)
    keep_vocabulary(LEARNED.merges, tmp_path)
    assert read_vocabulary(tmp_path) == LEARNED.merges
    with pytest.raises(ConfigError, match="is not the vocabulary that the demonstrations give now"):
        keep_vocabulary(learn_vocabulary(TEXTS[:1], 300), tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"merges": 3}', '{"merges": [["a"]]}', '{"merges": [["ab", "c"]]}'])
def test_a_file_that_is_none_is_explained(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_vocabulary(tmp_path)


def test_bytes_are_the_least() -> None:
    with pytest.raises(ConfigError, match="a vocabulary of 264 tokens; expected more than the 264 of bytes"):
        learn_vocabulary(TEXTS, 264)
    assert SubwordRenderer(()).encode("hé") == ByteRenderer().encode("hé")


def test_tools_need_not_be_described() -> None:
    tool: ToolSchema = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    for quiet in (ByteRenderer(describe_tools=False), SubwordRenderer(LEARNED.merges, describe_tools=False)):
        assert quiet.prompt(MESSAGES, [tool]) == quiet.prompt(MESSAGES)
    assert ByteRenderer().prompt(MESSAGES, [tool]) != ByteRenderer().prompt(MESSAGES)
