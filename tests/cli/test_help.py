"""The help pages say what is true of the configs."""

import json
import shlex
from pathlib import Path

import pytest

from rl.cli import conf, overrides
from rl.cli.compose import SCHEMAS, compose
from rl.cli.help import EXAMPLES, KNOBS, defaults, experiment_help
from rl.cli.launch import parse
from rl.cli.suite import evaluations

LINES = [(verb, line.strip()) for verb, text in EXAMPLES.items() for line in text.strip().splitlines()]


@pytest.mark.parametrize("verb", list(SCHEMAS))
def test_every_choice_is_listed_with_its_headline(verb: str) -> None:
    page = experiment_help(verb)
    for group in defaults(verb):
        assert f"\n  {group}=\n" in page
        for option in conf.options(group):
            assert f"{option:<13} {conf.headline(group, option)}\n" in page
    assert max(map(len, page.splitlines())) <= 120


@pytest.mark.parametrize("verb", list(SCHEMAS))
def test_the_defaults_shown_are_those_of_a_run(verb: str) -> None:
    config = compose(verb, []).config
    page = experiment_help(verb)
    for key in KNOBS[verb]:
        value = config
        for name in key.split("."):
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        shown = json.dumps(value) if value is None or isinstance(value, bool) else value
        assert f"\n  {key}={shown} " in page


@pytest.mark.parametrize(("verb", "line"), LINES)
def test_every_example_is_a_command_that_works(
    verb: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_environment").mkdir()
    (tmp_path / "my_environment" / "my_environment.py").write_text('"""Mine."""\n')
    monkeypatch.chdir(tmp_path)
    command, given, *rest = shlex.split(line)
    assert (command, given) == ("rl", verb)
    if verb == "eval":
        rest = rest[: rest.index("--fail-under")] if "--fail-under" in rest else rest
        for settings in evaluations(rest):
            compose(verb, settings)
        return
    flags = parse(verb, rest)
    overrides.check(flags.overrides, multirun=flags.multirun)
    compose(verb, overrides.fixed(flags.overrides))
