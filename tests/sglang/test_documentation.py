"""docs/sglang.md names no option that SGLang does not have."""

import os
import re
import subprocess
from pathlib import Path

import yaml

from rl.inference.sglang.command import router_command, server_command

PAGE = (Path(__file__).parents[2] / "docs" / "sglang.md").read_text("utf-8")


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


def known(python: Path, module: str, settings: dict[str, str]) -> set[str]:
    shown = subprocess.run(
        [python, "-m", module, "--help"], env={**os.environ, **settings}, capture_output=True, text=True, check=True
    )
    return flags(shown.stdout)


def test_every_option_is_one_of_sglang(python: Path) -> None:
    command = server_command(python, Path("MODEL"), port=1)
    options = known(python, "sglang.launch_server", dict(command.settings))
    arguments = [yaml.safe_load(text) for text in re.findall(r"inference\.arguments=(\{.*?\})'", PAGE)]
    assert len(arguments) == 7
    named = {word for each in arguments for word in server_command(python, Path("MODEL"), port=1, arguments=each).argv}
    assert {word for word in named if word.startswith("--")} <= options
    blocks = re.findall(r"-m sglang\.launch_server (--.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3 and flags(" ".join(blocks)) <= options
    assert flags(PAGE.split("A model over two nodes:")[1].split("\n\n")[0]) <= options


def test_every_option_is_one_of_the_router(python: Path) -> None:
    command = router_command(python, port=1, metrics_port=2)
    options = known(python, "sglang_router.launch_router", dict(command.settings))
    assert {word for word in command.argv if word.startswith("--")} <= options
    (shown,) = re.findall(r"sglang_router\.launch_router (.*?)`", PAGE, re.DOTALL)
    assert flags(shown) == {"--worker-urls", "--policy", "--port"} and flags(shown) <= options
