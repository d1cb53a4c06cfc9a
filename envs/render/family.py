"""The renderer of a model family that the package `renderers` knows token by token."""

import base64
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from envs.errors import ConfigError
from envs.render.hermes import make_call
from envs.render.template import Retention
from envs.tokenizer import Tokenizer, needed
from envs.types import Message, ToolSchema

_ASK: Message = {"role": "user", "content": "Hello"}
_HARMONY_FILE = "o200k_base.tiktoken"
# What parsers of the package raise on what no model should have sampled: numbers of 5,000 digits, brackets 1,000 deep …
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


class FamilyRenderer:
    """Renders as one family was trained to read: Qwen3, GLM-4.5, gpt-oss, Llama 3 and what else `renderers` knows.

    `extend` answers None where the family's format would not show the model what it sampled: its reasoning, once the
    user speaks again (`retention="tool_cycle"` or `"all"` keeps more of it; Llama 3 has none to lose); messages that
    speak for the model; a completion that goes on after its own end, ends in the middle of a thought, or that the
    family cannot read.

    Args:
        tokenizer: the model's.
        family: a name that `renderers` knows, for example "qwen3".
        retention: which reasoning stays in the conversation; "template" is what the family's chat template does.
        options: settings of the family, for example `enable_thinking=False`, `reasoning_effort="low"`, and the date a
            system message tells: `date_string` (Llama 3), `conversation_start_date` (gpt-oss; else that of today).

    Raises:
        ConfigError: for a family or setting that does not exist, or a tokenizer without the family's tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        family: str,
        *,
        retention: Retention = "template",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        settings = dict(options or {})
        if retention != "template":
            settings["thinking_retention"] = retention
        self.family = family
        self._tokenizer = tokenizer
        self._inner, self.template_options = _create(tokenizer, family, settings)
        self._settings = settings
        self.vocab_size = tokenizer.vocab_size
        self.stop_ids: tuple[int, ...] = tuple(self._inner.get_stop_token_ids())
        self._asked: list[int] = self._inner.render_ids([dict(_ASK)])
        self._opening = self.prompt([_ASK])[len(self._asked) :]

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        try:
            ids: list[int] = self._inner.render_ids(_plain(messages), tools=_tools(tools), add_generation_prompt=True)
        except _UNREADABLE as error:
            roles = ", ".join(message["role"] for message in messages) or "no messages"
            raise ConfigError(f"{self.family} cannot write a conversation of {roles}: {error}") from error
        return ids

    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
    ) -> list[int] | None:
        before = [*prompt_ids, *completion_ids]
        try:
            bridge = self._inner.bridge_to_next_turn(
                list(prompt_ids), list(completion_ids), _plain(messages), tools=_tools(tools)
            )
        except _UNREADABLE:
            return None
        if bridge is None or bridge.token_ids[: len(before)] != before:
            return None
        return list(bridge.token_ids)

    @cached_property
    def _speaker(self) -> Any:
        """What writes demonstrations: Harmony's history leaves out what was thought, a demonstration shows it."""
        if self.family != "gpt-oss" or "thinking_retention" in self._settings:
            return self._inner
        return _create(self._tokenizer, self.family, {**self._settings, "auto_drop_analysis": False})[0]

    def answer(self, message: Message) -> list[int]:
        said = self._speaker.render_ids(_plain([_ASK, message]))
        begun = [*self._asked, *self._opening]
        rest = self.text(said).removeprefix(self.text(begun))
        if said[: len(begun)] == begun:
            written = said[len(begun) :]
        elif rest != self.text(said):  # one token stands across the end of the prompt, where a model cannot write it
            written = self._tokenizer.encode(rest)
        elif self.family == "gpt-oss":  # the prompt has begun a thought: an answer without one ends it at once
            written = [self._tokenizer.convert_tokens_to_ids("<|end|>"), *said[len(self._asked) :]]
        else:
            raise ConfigError(
                f"{self.family} with these settings begins an answer with {self.text(self._opening)!r}; the message "
                f"{message} is not said so (reasoning where thinking is switched off?)"
            )
        ends = [i for i, token in enumerate(written) if token in self.stop_ids]
        return written[: ends[-1] + 1] if ends else [*written, self._closing(message)]

    def parse(self, ids: Sequence[int], *, prompt_ids: Sequence[int] = (), tools: Sequence[ToolSchema] = ()) -> Message:
        try:
            found = self._inner.parse_response(
                list(ids), tools=_tools(tools), prompt_ids=list(prompt_ids) or self._opening
            )
        except _UNREADABLE:  # then it is text
            return {"role": "assistant", "content": self.text(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)}
        calls = [
            make_call(number, call.name, call.arguments if call.name and call.arguments is not None else call.raw)
            for number, call in enumerate(found.tool_calls)
        ]
        content, thought = found.content.lstrip("\n"), (found.reasoning_content or "").strip()
        message: Message = {"role": "assistant", "content": content or (None if calls else "")}
        if thought:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = calls
        return message

    def text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def _closing(self, message: Message) -> int:
        """The token that ends an assistant message where it is the next speaker's: GLM's own way."""
        then = {"role": "tool" if message.get("tool_calls") else "user", "content": "", "name": "f"}
        said = self._inner.render_ids([dict(_ASK), {"role": "assistant", "content": "Hi"}])
        answered = self._inner.render_ids([dict(_ASK), {"role": "assistant", "content": "Hi"}, then])
        closing: int = answered[len(said)]
        return closing if closing in self.stop_ids else self.stop_ids[0]


def _create(tokenizer: Tokenizer, family: str, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The package's renderer, and the variables that a chat template would need to say the same."""
    renderers = needed("renderers")
    try:
        config = type(renderers.config_from_name(family))(**settings)
    except ValueError as error:
        raise ConfigError(f"renderer '{family}' with {settings}: {error}") from error
    try:
        with _harmony_vocabulary(tokenizer, family):
            inner = renderers.create_renderer(tokenizer, config)
    except AssertionError as error:  # how the package says that a token is missing
        raise ConfigError(f"{tokenizer.name_or_path} is no '{family}' model: {error}") from error
    return inner, {name: getattr(config, name) for name in config.template_field_names()}


@contextmanager
def _harmony_vocabulary(tokenizer: Tokenizer, family: str) -> Iterator[None]:
    """gpt-oss's own library fetches its vocabulary from the network; the checkpoint's tokenizer has it already."""
    if family != "gpt-oss" or "TIKTOKEN_ENCODINGS_BASE" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _HARMONY_FILE).write_bytes(_tiktoken_file(tokenizer))
        os.environ["TIKTOKEN_ENCODINGS_BASE"] = folder
        try:
            yield
        except needed("openai_harmony").HarmonyError as error:
            raise ConfigError(f"{tokenizer.name_or_path} has not the vocabulary of gpt-oss: {error}") from error
        finally:
            del os.environ["TIKTOKEN_ENCODINGS_BASE"]


def _tiktoken_file(tokenizer: Tokenizer) -> bytes:
    """A byte-level vocabulary in tiktoken's form: a line of base64 and id per token, special tokens left out."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}  # the other bytes stand for themselves plus something
    letters = {256 + i: byte for i, byte in enumerate(byte for byte in range(256) if byte not in shown)}
    special = tokenizer.backend.get_added_tokens_decoder()
    words = {index: word for word, index in tokenizer.backend.get_vocab(with_added_tokens=False).items()}
    return b"".join(
        base64.b64encode(words[index].translate(letters).encode("latin-1")) + b" %d\n" % index
        for index in sorted(words.keys() - special.keys())
    )


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the package expects them: no None, and tool results that know their tool."""
    calls = {call["id"]: call["function"]["name"] for message in messages for call in message.get("tool_calls", ())}
    shown: list[dict[str, Any]] = [{**message, "content": message["content"] or ""} for message in messages]
    for message in shown:
        if message["role"] == "tool" and not message.get("name") and message.get("tool_call_id") in calls:
            message["name"] = calls[message["tool_call_id"]]
    return shown


def _tools(tools: Sequence[ToolSchema]) -> list[dict[str, Any]] | None:
    return [dict(tool) for tool in tools] or None
