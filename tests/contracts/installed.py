"""Environments that were installed with `pip install ./envs/library/NAME`; run by `make test-environments`."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from envs import load_environment
from envs.resolve import find_environment
from rl.cli.main import main

NAMES = os.environ["INSTALLED"].split()


@pytest.mark.parametrize("name", NAMES)
def test_an_installed_environment_is_found_where_it_was_installed(name: str) -> None:
    info = find_environment(name)
    assert (info.source, info.version) == ("installed", load_environment(name).version)
    assert info.path.is_relative_to(Path(sysconfig.get_path("purelib"))), "and not in the checkout"


def test_rl_envs_lists_the_installed_ones_as_installed(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("python"), "-m", "rl.cli.main", "envs"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    rows = [[cell.strip() for cell in line.split("│")] for line in listed.splitlines()]
    assert set(NAMES) <= {row[1] for row in rows if len(row) > 2 and row[2] == "installed"}


@pytest.mark.parametrize("name", NAMES)
def test_an_installed_environment_is_fit_for_use(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "validate", name, "--tasks", "4"]) == 0, capsys.readouterr().out
    assert "9 of 9 checks passed" in capsys.readouterr().out
