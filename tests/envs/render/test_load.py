"""Which renderer a model gets: its family's where that writes what the model's own template writes, else the latter."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from envs import ConfigError, Message
from envs.render import Renderer, load_renderer
from envs.render.family import FamilyRenderer
from envs.render.template import TemplateRenderer
from envs.tokenizer import _SPLITS, _byte_level_bpe

Write = Callable[..., Path]
ASK: list[Message] = [{"role": "user", "content": "1 + 1?"}]
LLAMA_3 = """\
{{- bos_token }}<|start_header_id|>system<|end_header_id|>

{% if tools %}Environment: ipython
{% endif %}Cutting Knowledge Date: December 2023
Today Date: {{ date_string }}

{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}<|eot_id|>
{%- for m in messages %}
{%- if m.tool_calls %}<|start_header_id|>assistant<|end_header_id|>

{% set f = m.tool_calls[0].function %}{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}<|eot_id|>
{%- elif m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>

{{ m.content | tojson }}<|eot_id|>
{%- else %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{% if tools and loop.first %}Given the following functions, please respond with a JSON for a function call \
with its proper arguments that best answers the given prompt.

Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.\
Do not use variables.

{% for t in tools %}{{ t | tojson(indent=4) }}

{% endfor %}{% endif %}{{ m.content | trim }}<|eot_id|>{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""


def llama(write_tokenizer: Write, template: str) -> Path:
    tokens = "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|>"
    return write_tokenizer(
        tokens.split(), eos="<|eot_id|>", model_type="llama", bos_token="<|begin_of_text|>", chat_template=template
    )


def kind(renderer: Renderer) -> type:
    return type(renderer)


def test_a_family_whose_template_is_its_own(write_tokenizer: Write) -> None:
    renderer = load_renderer(llama(write_tokenizer, LLAMA_3))
    assert isinstance(renderer, FamilyRenderer) and renderer.family == "llama-3"
    assert "Today Date: 26 Jul 2024" in renderer.text(renderer.prompt(ASK))
    dated = load_renderer(llama(write_tokenizer, LLAMA_3), date_string="1 May 2025")
    assert isinstance(dated, FamilyRenderer)
    assert "Today Date: 1 May 2025" in dated.text(dated.prompt(ASK))


def test_a_fine_tune_with_another_template(write_tokenizer: Write) -> None:
    path = llama(write_tokenizer, LLAMA_3.replace("December 2023", "May 2024"))
    renderer = load_renderer(path)
    assert isinstance(renderer, TemplateRenderer)
    assert "May 2024" in renderer.text(renderer.prompt(ASK))
    assert isinstance(load_renderer(path, "llama-3"), FamilyRenderer), "who asks for the family gets it"


def test_gpt_oss_speaks_as_its_own_library(family_renderer: Callable[..., FamilyRenderer], tmp_path: Path) -> None:
    family_renderer("gpt-oss")._tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    renderer = load_renderer(tmp_path, conversation_start_date="2025-01-01")
    assert renderer.prompt(ASK) == family_renderer("gpt-oss").prompt(ASK)


def test_another_model_of_the_same_architecture(smollm2_file: Path) -> None:
    assert kind(load_renderer(smollm2_file)) is TemplateRenderer


def test_a_template_from_a_file(write_tokenizer: Write, tmp_path: Path) -> None:
    path = llama(write_tokenizer, LLAMA_3)
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}")
    renderer = load_renderer(path, template=str(file))
    assert renderer.text(renderer.prompt(ASK)) == "user: 1 + 1?<|eot_id|>"
    with pytest.raises(ConfigError, match=r"template=no\.jinja cannot be read: No such file or directory"):
        load_renderer(path, template="no.jinja")


def test_names_that_do_not_exist(write_tokenizer: Write) -> None:
    path = llama(write_tokenizer, LLAMA_3)
    with pytest.raises(ConfigError, match="No renderer config registered for name='lama'"):
        load_renderer(path, "lama")
    with pytest.raises(ConfigError, match="unknown retention 'al'; did you mean 'all'"):
        load_renderer(path, retention="al")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=re.escape("renderer 'llama-3' with {'date': '1'}")):
        load_renderer(path, date="1")


TEXTS = [
    "Hello world! 12345 naïve 🙂\n\n  x",
    "def f(x):\n    return x**2  # don't\r\n\tÄ",
    "  \n \n a  b   c   ",
    "日本語テキスト and 한국어 ½ ①② 1000000",
    "I'LL DON'T we're HELLOworld helloWORLD",
    "a\u0301 e\u0301",
]


@pytest.mark.parametrize(("name", "cut"), [("qwen3", "qwen2"), ("llama3", "llama-bpe"), ("o200k", "gpt-4o")])
def test_text_is_cut_as_the_real_models_cut_it(
    real_vocabulary: Callable[..., tuple[dict[str, int], object, Callable[[str], list[int]]]], name: str, cut: str
) -> None:
    """Against another implementation, on the real vocabularies, or what of them these texts could ever use."""
    ids, _, encode = real_vocabulary(name)
    split = _SPLITS[cut]
    letters = _byte_level_bpe([token for token in ids if len(token) == 1], [], split)
    texts = [letters.normalizer.normalize_str(text) if split.nfc else text for text in TEXTS]
    pieces = [piece for text in texts for piece, _ in letters.pre_tokenizer.pre_tokenize_str(text)]
    parts = {piece[i:j] for piece in pieces for j in range(len(piece) + 1) for i in range(j)}
    used = sorted(parts & ids.keys(), key=lambda token: ids[token])
    pairs = [(token[:i], token[i:]) for token in used for i in range(1, len(token))]
    merges = [f"{left} {right}" for left, right in pairs if left in ids and right in ids]
    backend = _byte_level_bpe(used, merges, split)
    for text in TEXTS:
        assert [ids[token] for token in backend.encode(text).tokens] == list(encode(text)), text
