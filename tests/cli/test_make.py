"""The Makefile teaches, and says what is wrong before it changes anything."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_help_is_the_default_and_lists_every_target() -> None:
    listed = re.findall(r"^  make ([\w-]+) +\S", make().stdout, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None and listed == phony[1].split()
    assert {"demo", "test", "check", "bench", "format", "clean", "lock"} <= set(listed)


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18"\nexit 1\n')
    old.chmod(0o755)
    done = make(f"PYTHON={old}", f"VENV={tmp_path / 'venv'}", "test")
    assert done.returncode != 0
    expected = f"error: {old} is Python 3.9.18; expected Python 3.11 or newer; "
    assert expected + "name one, for example: make PYTHON=python3.12 test\n" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench"])
def test_a_target_sets_everything_up_first(target: str, tmp_path: Path) -> None:
    planned = make("--dry-run", f"VENV={tmp_path / 'venv'}", target).stdout
    assert planned.index("-m venv") < planned.index("-r requirements.lock") < planned.index("--no-deps")


def test_demo_takes_the_seed_and_resume() -> None:
    assert (
        "rl train experiment=reverse_text seed=2 resume=true"
        in make("--dry-run", "demo", "seed=2", "resume=true").stdout
    )
    assert "rl train experiment=reverse_text seed=1 resume=false" in make("--dry-run", "demo").stdout


def test_ci_runs_make_targets_only() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and line[0] not in "#"]
    assert commands[:2] == ["set -euo pipefail", 'cd "$(dirname "$0")/.."']
    assert all(command.startswith("make ") for command in commands[2:])
    assert commands[-3:] == ["make test", "make sglang", "make test-sglang"]
    steps = re.findall(r"- run: (.*)", (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert set(commands[2:]) <= set(steps)


def test_sglang_is_built_in_two_steps_and_never_into_what_a_link_points_to(tmp_path: Path) -> None:
    planned = make("--dry-run", f"SGLANG={tmp_path / 'venv'}", "SGLANG_FOR=cpu", "sglang").stdout
    recipe = "rl/inference/sglang/requirements"
    assert planned.index(f"-r {recipe}/cpu.txt") < planned.index(f"--no-deps -r {recipe}/cpu-no-deps.txt")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    done = make(f"SGLANG={tmp_path / 'link'}", "sglang")
    assert done.returncode != 0 and f"error: {tmp_path / 'link'} is a link and older than {recipe};" in done.stderr
    assert list((tmp_path / "theirs").iterdir()) == []


def test_the_wheel_carries_every_config(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("upswing-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {str(file.relative_to(ROOT)) for file in (ROOT / "conf").rglob("*.yaml")} <= packed
    sglang = ROOT / "rl" / "inference" / "sglang"
    files = [*sglang.glob("requirements/*.txt"), *sglang.glob("shims/**/*.py")]
    assert len(files) == 5 and {str(file.relative_to(ROOT)) for file in files} <= packed
