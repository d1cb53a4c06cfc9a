"""What the README says works: its commands compose, its environment loads and validates, its links exist."""

import asyncio
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from envs import ScriptedClient, evaluate, load_environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
EXPERIMENTS = [c for c in COMMANDS if c.startswith(("rl train", "rl eval", "rl sft", "rl serve", "rl chat"))]


def rl(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rl.cli.main", *arguments], cwd=cwd, capture_output=True, text=True)


def test_the_readme_has_commands():
    assert len(EXPERIMENTS) >= 4 and any(c.startswith("make demo") for c in COMMANDS)


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_every_experiment_of_the_readme_composes(command):
    verb, *settings = shlex.split(command)[1:]
    if "--fail-under" in settings:
        settings = settings[: settings.index("--fail-under")]
    if "-m" in settings or verb == "eval":
        settings = [s.split(",")[0] for s in settings if s != "-m"]
    done = rl(verb, *settings, "--cfg", "job")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", [c.split()[1] for c in COMMANDS if c.startswith("make ")])
def test_every_make_target_of_the_readme_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_environment_of_the_readme_works_as_printed(tmp_path):
    (tmp_path / "sums").mkdir()
    (source,) = [block for block in blocks("python") if "def load_environment" in block]
    (tmp_path / "sums" / "sums.py").write_text(source)
    environment = load_environment(str(tmp_path / "sums"))
    train, held_out = (environment.tasks.split(name) for name in ("train", "eval"))
    assert {t.id for t in train}.isdisjoint(t.id for t in held_out)
    expert = ScriptedClient(lambda messages: str(eval(messages[-1]["content"].rstrip("="))))
    result = asyncio.run(evaluate(environment, expert, tasks=20))
    assert result.interval("reward").mean == 1.0 and result.interval("brief").mean == 1.0
    assert rl("envs", "./sums", cwd=tmp_path).returncode == 0


def test_the_links_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
