"""The tokenizer of SmolLM2 from its GGUF file; those of directories against `transformers`."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from envs import ConfigError, UpswingError
from envs.tokenizer import Tokenizer, load_tokenizer, needed

Write = Callable[..., Path]
# Twenty-one bytes have no token in SmolLM2's vocabulary; Hugging Face leaves them out without a word, and so do we.
KNOWN = st.characters(exclude_categories=["Cs"], exclude_characters="\x04\x06\x13\x14\x16\x1d", max_codepoint=0x3FFFF)
TEXT = st.text(KNOWN, max_size=60)
SPECIAL = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<empty_output>": 16}


@pytest.fixture(scope="module")
def smollm2(smollm2_file: Path) -> Tokenizer:
    return load_tokenizer(smollm2_file)


def test_what_smollm2_says_of_itself(smollm2: Tokenizer) -> None:
    assert (smollm2.vocab_size, smollm2.end_ids, smollm2.eos_token_id, smollm2.unk_token_id) == (49152, (2,), 2, 0)
    assert (smollm2.bos_token, smollm2.eos_token, smollm2.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert list(smollm2.templates) == ["default"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world!", [19556, 28, 905, 17]),
        ("Hello 123", [19556, 216, 33, 34, 35]),  # each digit apart, and the blank before them
        ("don't  stop", [12420, 982, 216, 2853]),
        ("<|im_start|>x<|im_end|>", [1, 104, 2]),
        ("", []),
    ],
)
def test_ids_of_smollm2_by_hand(smollm2: Tokenizer, text: str, ids: list[int]) -> None:
    assert smollm2.encode(text) == ids
    assert smollm2.decode(ids) == text


@given(TEXT)
def test_smollm2_reads_what_it_wrote(smollm2: Tokenizer, text: str) -> None:
    ids = smollm2.encode(text)
    assert smollm2.decode(ids) == text
    assert max(ids, default=0) < 49152 and not {0, 1, 2} & set(ids)
    encoded = smollm2(text)
    assert encoded["input_ids"] == ids and len(encoded["offset_mapping"]) == len(ids)


@given(st.integers(0, 10**30))
def test_digits_of_smollm2_are_apart(smollm2: Tokenizer, number: int) -> None:
    assert [smollm2.decode([i]) for i in smollm2.encode(str(number))] == list(str(number))


def test_special_tokens_of_smollm2_are_never_cut(smollm2: Tokenizer) -> None:
    for token, index in SPECIAL.items():
        assert smollm2.encode(f"a{token}b")[1:-1] == [index] == [smollm2.convert_tokens_to_ids(token)]


def test_what_is_no_text_and_what_is_no_token(smollm2: Tokenizer) -> None:
    assert smollm2.decode(smollm2.encode("\ud800x")) == "?x"
    assert smollm2.decode(smollm2.encode("a\x16b\U00040000"))[:2] == "ab"
    assert smollm2.decode([19556, 49151 + 100, 28]) == "Hello,"
    assert smollm2.decode(smollm2.encode("🙂")[:1]) == "\ufffd"
    assert smollm2.convert_tokens_to_ids("<|nothing|>") is None


def test_a_directory_equals_transformers(tmp_path: Path, write_tokenizer: Write) -> None:
    import transformers

    write_tokenizer(special=["<|user|>", "<|end|>"], padding=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    size = load_tokenizer(tmp_path).vocab_size
    extra = {"content": "<|later|>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}
    config["added_tokens_decoder"] = {str(size): extra | {"single_word": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in ("Hello <|user|>you<|later|>", "naïve 🙂\n\n 12345", "", "a" * 200):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text
    assert ours.convert_tokens_to_ids("<|later|>") == size


@pytest.mark.parametrize(
    ("generation", "model", "ends"),
    [({}, {}, [1]), ({"eos_token_id": 2}, {"eos_token_id": 3}, [1, 2]), ({}, {"eos_token_id": [3, 1]}, [1, 3])],
)
def test_what_ends_a_message(
    tmp_path: Path, write_tokenizer: Write, generation: Any, model: Any, ends: list[int]
) -> None:
    write_tokenizer(special=["<|user|>", "<|end|>", "<|call|>", "<|pad|>"], eos="<|end|>")
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(model))
    assert list(load_tokenizer(tmp_path).end_ids) == ends


def test_chat_templates_wherever_they_are(tmp_path: Path, write_tokenizer: Write) -> None:
    write_tokenizer(special=[], chat_template=[{"name": "default", "template": "a"}])
    assert load_tokenizer(tmp_path).templates == {"default": "a"}
    (tmp_path / "chat_template.jinja").write_text("b")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("c")
    assert load_tokenizer(tmp_path).templates == {"default": "b", "tool_use": "c"}


def test_files_that_do_not_belong_together(tmp_path: Path, write_tokenizer: Write) -> None:
    write_tokenizer(special=["<|user|>"], added_tokens_decoder={"7": {"content": "<|user|>"}})
    with pytest.raises(ConfigError, match=r"token '<\|user\|>' has id 0 in tokenizer.json and 7 in tokenizer_config"):
        load_tokenizer(tmp_path)


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no tokenizer: expected a Hugging Face directory or a \.gguf file"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json, and no tokenizer could be made of its other files"):
        load_tokenizer(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"GGML" + bytes(40))
    with pytest.raises(UpswingError, match="is no GGUF file"):
        load_tokenizer(tmp_path / "x.gguf")


def test_a_directory_without_tokenizer_json_is_made_of_its_other_files(tmp_path: Path, write_tokenizer: Write) -> None:
    write_tokenizer(special=["<|endoftext|>"])
    whole = load_tokenizer(tmp_path)
    whole.backend.model.save(str(tmp_path))  # vocab.json and merges.txt
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    made = load_tokenizer(tmp_path)
    assert made.encode("Hello there naïve") == whole.encode("Hello there naïve")


def test_a_missing_package_says_what_to_install() -> None:
    assert importlib.util.find_spec("nosuchpackage") is None
    with pytest.raises(ConfigError, match=r"'nosuchpackage', which is not installed; pip install 'upswing\[models\]'"):
        needed("nosuchpackage")
    assert needed("tokenizers") is tokenizers
