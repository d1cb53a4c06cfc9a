"""Which renderer a model has."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from envs.errors import ConfigError, unknown_name
from envs.gguf import read_gguf_head
from envs.render.base import Renderer
from envs.render.family import FamilyRenderer
from envs.render.template import Retention, TemplateRenderer
from envs.tokenizer import Tokenizer, load_tokenizer, read_json
from envs.types import Message

_FAMILIES = {  # model_type -> name in `renderers`, and a token that only this family's chat format has
    "qwen3": ("qwen3", "<think>"),
    "qwen3_moe": ("qwen3", "<think>"),
    "qwen3moe": ("qwen3", "<think>"),
    "glm4_moe": ("glm-4.5", "<|observation|>"),
    "glm4moe": ("glm-4.5", "<|observation|>"),
    "gpt_oss": ("gpt-oss", "<|channel|>"),
    "gpt-oss": ("gpt-oss", "<|channel|>"),
    "llama": ("llama-3", "<|start_header_id|>"),
}

_OWN_LIBRARY = frozenset({"gpt-oss"})
"""Families whose reference is a library, from which their published chat template departs in small things."""


def load_renderer(
    path: str | Path,
    name: str = "auto",
    *,
    retention: Retention = "template",
    template: str | None = None,
    **options: Any,
) -> Renderer:
    """The renderer of the model in a Hugging Face directory or a GGUF file.

    With "auto", a family that `renderers` knows is taken if it writes a few conversations (tools, reasoning, several
    turns) exactly as the checkpoint's own chat template does; fine-tunes often come with a template of their own, and
    then, as for all other models, that template is what renders. gpt-oss always speaks as its own library Harmony does.

    Args:
        path: the directory or file.
        name: "auto", "template", or a family by its name in `renderers` ("qwen3", "glm-4.5", "gpt-oss", "llama-3" …).
        retention: which reasoning of earlier turns stays in the conversation: what the chat template shows of it
            ("template"), all since the user last spoke ("tool_cycle"), or all ("all"; then no rollout is ever split
            into several rows, but the model sees in training what the template would hide).
        template: a file with a chat template to use instead of the model's.
        options: variables of the chat template or settings of the family, for example `enable_thinking=False`.

    Raises:
        ConfigError: when there is no tokenizer or chat template, or a name or setting does not fit.
    """
    if retention not in get_args(Retention):
        raise unknown_name("retention", str(retention), get_args(Retention))
    tokenizer = load_tokenizer(path)
    if template is not None:
        tokenizer = replace(tokenizer, templates={"default": _read(template)})
    if name == "template" or (name == "auto" and template is not None):
        return TemplateRenderer(tokenizer, tokenizer.templates, retention=retention, options=options)
    if name != "auto":
        return FamilyRenderer(tokenizer, name, retention=retention, options=options)
    family, token = _FAMILIES.get(_model_type(Path(path)), ("", ""))
    if family and tokenizer.convert_tokens_to_ids(token) is not None:
        renderer = FamilyRenderer(tokenizer, family, retention=retention, options=options)
        if family in _OWN_LIBRARY or not tokenizer.templates or agrees(renderer, tokenizer):
            return renderer
    return TemplateRenderer(tokenizer, tokenizer.templates, retention=retention, options=options)


def agrees(renderer: FamilyRenderer, tokenizer: Tokenizer) -> bool:
    """Whether a family's renderer writes several kinds of conversation as the tokenizer's chat template does."""
    own = TemplateRenderer(tokenizer, tokenizer.templates, options=renderer.template_options)
    return all(renderer.prompt(messages, tools) == own.prompt(messages, tools) for messages, tools in _PROBES)


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _model_type(path: Path) -> str:
    """What a checkpoint says it is; "" if it does not."""
    if path.is_dir():
        return str(read_json(path / "config.json").get("model_type", ""))
    return str(read_gguf_head(path).metadata.get("general.architecture", ""))


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"template={path} cannot be read: {error.strerror}") from error


_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}
_SYSTEM: Message = {"role": "system", "content": "Be brief, naïve 🙂."}
_THOUGHT: Message = {"role": "assistant", "content": "Two.", "reasoning_content": "One and one."}
_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "call_0", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "café"}'}}
    ],
}
_RESULT: Message = {"role": "tool", "name": "look_up", "tool_call_id": "call_0", "content": "a house"}
_PROBES: list[tuple[list[Message], list[dict[str, Any]]]] = [
    ([_user("1 + 1?")], []),
    ([_SYSTEM, _user("1 + 1?"), _THOUGHT, _user("Sure?")], []),
    ([_SYSTEM, _user("café?")], [_TOOL]),
    ([_user("café?"), _CALL, _RESULT], [_TOOL]),
    ([_user("café?"), {**_CALL, "reasoning_content": "French."}, _RESULT, _THOUGHT, _user("Sure?")], [_TOOL]),
]
