"""The renderer of a model that is known by its chat template alone."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from envs.errors import ConfigError
from envs.render.hermes import describe_tools, make_call, read_calls, spell_calls
from envs.tokenizer import Tokenizer, needed
from envs.types import Message, ToolSchema

if TYPE_CHECKING:
    from envs.render.chat_template import ChatTemplate

Retention = Literal["template", "tool_cycle", "all"]
"""Whose reasoning a model keeps seeing: what its chat format shows of earlier messages; all since the user last spoke;
or all of it, so that no conversation is ever rendered anew."""

_SAID = "\u2e22said\u2e23"  # stands for what the model says or thinks; no template writes it
_ASK: Message = {"role": "user", "content": "Hello"}


class TemplateRenderer:
    """Renders by a chat template; reads `<think>…</think>` and `<tool_call>…</tool_call>` in what is sampled.

    The next turn is what the template writes after an assistant message, behind the sampled tokens themselves. A
    template that leaves the reasoning out of earlier messages would not show the model what it sampled: `extend` then
    answers None, unless `retention` keeps it. So it does where the template cannot continue an assistant message at
    all. Where the template knows no tools they are described in the system message; where it knows no reasoning, that
    of a message is left out.

    Args:
        tokenizer: the model's.
        templates: chat templates by name; "tool_use", if there, is taken where there are tools.
        retention: which reasoning stays in the conversation.
        options: more variables for the template, for example `enable_thinking=False`.

    Raises:
        ConfigError: when there is no template, it cannot be compiled, or nothing ends an assistant message.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        templates: Mapping[str, str],
        *,
        retention: Retention = "template",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        where = f"the chat template of {tokenizer.name_or_path}"
        if not templates:
            raise ConfigError(f"{tokenizer.name_or_path} has no chat template; give one: template=FILE.jinja")
        self._tokenizer, self._where = tokenizer, where
        compiled = needed("envs.render.chat_template").ChatTemplate
        self._plain: ChatTemplate = compiled(templates.get("default") or next(iter(templates.values())), where)
        self._tooled: ChatTemplate = compiled(templates["tool_use"], where) if "tool_use" in templates else self._plain
        special = ("bos_token", "eos_token", "unk_token", "pad_token")
        self._variables = {**{name: getattr(tokenizer, name) for name in special}, **(options or {})}
        self.vocab_size = tokenizer.vocab_size
        self._begun = self._text([_ASK], speak=True)
        self._header, said, ending = self._text([_ASK, _assistant(_SAID)]).partition(_SAID)
        if not said:
            raise ConfigError(f"{where} does not write what an assistant says as plain text (parts, for images?)")
        self.stop_ids = self._ends(ending)
        self._thinks_at_once = self._begun.rstrip().endswith("<think>")
        self._keeps = {
            "user": retention == "all" or self._keeps_thinking({"role": "user", "content": "And?"}),
            "tool": retention != "template" or self._keeps_thinking({"role": "tool", "content": "1", "name": "f"}),
        }

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        return self._tokenizer.encode(self._text(messages, tools, speak=True))

    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
    ) -> list[int] | None:
        speaker = "user" if any(message["role"] == "user" for message in messages) else "tool"
        if not self._keeps[speaker] and "</think>" in self.text([*prompt_ids, *completion_ids]):
            return None
        try:
            text = self._text([_ASK, _assistant(_SAID), *messages], tools, speak=True)
        except ConfigError:
            return None  # it does not take these messages after those; whether it takes the whole, `prompt` tells
        _, said, after = text.partition(_SAID)
        if not said:
            return None
        added = self._tokenizer.encode(self._unfinished_thought(completion_ids) + after)
        if completion_ids and completion_ids[-1] in self.stop_ids and added and added[0] in self.stop_ids:
            del added[0]  # the model wrote its end itself
        return [*prompt_ids, *completion_ids, *added]

    def answer(self, message: Message) -> list[int]:
        said = self._text([_ASK, message])
        before = next((start for start in (self._begun, self._header) if said.startswith(start)), None)
        if before is None:
            raise ConfigError(
                f"{self._where} begins an answer with {self._begun[-40:]!r}; the message {message} is not said so "
                "(reasoning where thinking is switched off?)"
            )
        written = said.removeprefix(before)
        thought = message.get("reasoning_content", "").strip()
        if self._thinks_at_once and before != self._begun:
            answered = written.partition("</think>")[2].lstrip("\n") if "</think>" in written else written
            written = f"{thought}\n</think>\n\n{answered}"
        elif self._plain.reasoning and thought not in written:
            written = f"<think>\n{thought}\n</think>\n\n{written}"
        ids = self._tokenizer.encode(written)
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), None)
        return [*ids, self.stop_ids[0]] if end is None else ids[: end + 1]

    def parse(self, ids: Sequence[int], *, prompt_ids: Sequence[int] = (), tools: Sequence[ToolSchema] = ()) -> Message:
        text, thought = self.text(ids[:-1] if ids and ids[-1] in self.stop_ids else ids), ""
        if self._thinks(text):
            thought, closed, text = text.partition("</think>")
            thought = thought.lstrip().removeprefix("<think>").strip()
            text = text.lstrip("\n") if closed else ""
        content, calls = read_calls(text)
        message: Message = {"role": "assistant", "content": content}
        if thought:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = calls
        return message

    def text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def _text(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), *, speak: bool = False) -> str:
        """What the template makes of a conversation."""
        template = self._tooled if tools else self._plain
        shown = list(messages) if template.tools else describe_tools(messages, tools)
        variables = {
            **self._variables,
            "messages": [_for_template(message, calls=template.tools) for message in shown],
            "tools": list(tools) if tools else None,
            "add_generation_prompt": speak,
        }
        return template(variables)

    def _ends(self, ending: str) -> tuple[int, ...]:
        """The tokens that end an assistant message: what the template ends it with, and what the model came with."""
        special = self._tokenizer.backend.get_added_tokens_decoder()
        ends = [token for token in self._tokenizer.encode(ending)[:1] if token in special]
        if not ends and not self._tokenizer.end_ids:
            raise ConfigError(
                f"{self._tokenizer.name_or_path}: nothing ends an assistant message: its chat template writes no "
                "special token there, and the tokenizer names no eos_token"
            )
        return tuple(dict.fromkeys([*ends, *self._tokenizer.end_ids]))

    def _keeps_thinking(self, then: Message) -> bool:
        """Whether the template still shows what was thought before `then`."""
        if not self._plain.reasoning:
            return True
        thinking: Message = {**_assistant("Yes."), "reasoning_content": _SAID}
        if then["role"] == "tool":
            thinking["tool_calls"] = [make_call(0, "f", "{}")]
        try:
            return _SAID in self._text([_ASK, thinking, then], speak=True)
        except ConfigError:
            return False

    def _thinks(self, text: str) -> bool:
        return self._plain.reasoning and (self._thinks_at_once or text.lstrip().startswith("<think>"))

    def _unfinished_thought(self, completion_ids: Sequence[int]) -> str:
        """What ends a thought that was cut off."""
        text = self.text(completion_ids)
        return "\n</think>\n\n" if self._thinks(text) and "</think>" not in text else ""


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _for_template(message: Message, *, calls: bool) -> dict[str, Any]:
    """A message as templates expect it: no None, arguments as objects, reasoning by both its names."""
    shown: dict[str, Any] = {**message, "content": message["content"] or ""}
    if "reasoning_content" in message:
        shown["thinking"] = message["reasoning_content"]
    if "tool_calls" in message and calls:
        shown["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _object(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    elif "tool_calls" in message:
        del shown["tool_calls"]
        shown["content"] += spell_calls(message["tool_calls"])
    return shown


def _object(arguments: str) -> Any:
    """Arguments as the object that their JSON spells; as they are where it spells none."""
    try:
        spelled = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return spelled if isinstance(spelled, dict) else arguments
