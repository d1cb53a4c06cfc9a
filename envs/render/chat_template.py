"""A model's own chat template: Jinja in a sandbox, with the functions that Hugging Face gives to templates."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from envs.errors import ConfigError


class ChatTemplate:
    """A compiled chat template, and what it can do.

    The environment is that of `transformers`: blocks are trimmed, loop controls work, `tojson` escapes nothing, and
    there are `raise_exception`, `strftime_now` and the block `generation`. The time that `strftime_now` tells is that
    of compilation: a conversation that is rendered twice begins the same.

    Attributes:
        tools: it can describe tools.
        reasoning: it knows that a model thinks before it answers.

    Raises:
        ConfigError: when the source is no template.
    """

    def __init__(self, source: str, where: str = "the chat template") -> None:
        environment = _environment(datetime.now())
        try:
            variables = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"{where} cannot be compiled: {error}") from error
        self._where = where
        self.tools = "tools" in variables
        self.reasoning = "</think>" in source or "reasoning_content" in source or ".thinking" in source

    def __call__(self, variables: Mapping[str, Any]) -> str:
        """The text it makes of `messages`, `add_generation_prompt` and what else it asks for.

        Raises:
            ConfigError: when it refuses them.
        """
        try:
            return self._template.render(**variables)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            roles = ", ".join(message["role"] for message in variables["messages"])
            raise ConfigError(f"{self._where} refuses a conversation of {roles}: {error}") from error


class _GenerationBlock(Extension):
    """`{% generation %} … {% endgeneration %}`, which marks what an assistant said; here it is what it holds."""

    tags = {"generation"}  # noqa: RUF012 - the base class's own type

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(now: datetime) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = now.strftime
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
