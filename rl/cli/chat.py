"""`rl chat`."""

import sys
from collections.abc import Sequence

from envs.errors import ConfigError
from rl.cli.launch import composed_or_shown, parse

_TEXTS = ("prompt", "system")


def run(arguments: Sequence[str]) -> int:
    """Run the verb with what follows it on the command line; returns the exit code."""
    settings, texts = taken_apart(arguments)
    flags = parse("chat", settings)
    if flags.multirun:
        raise ConfigError("rl chat is one conversation; it takes no -m")
    composed = composed_or_shown("chat", flags)
    if composed is not None:
        from rl.cli.talk import chat

        for name, text in texts.items():
            setattr(composed.config, name, text)
        chat(composed.config)
    return 0


def taken_apart(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The settings for Hydra, and the texts of `prompt=` and `system=`.

    Those are taken as they stand: a question has commas, brackets and quotation marks, which mean something to Hydra.
    """
    settings: list[str] = []
    texts: dict[str, str] = {}
    for argument in arguments:
        name, given, text = argument.partition("=")
        if given and name in _TEXTS:
            texts[name] = text
        else:
            settings.append(argument)
    return settings, texts


if __name__ == "__main__":
    from rl.cli.main import main

    sys.exit(main(["chat", *sys.argv[1:]]))
