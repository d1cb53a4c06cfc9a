import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import envs.resolve
from envs import ConfigError, list_environments, load_environment
from envs.resolve import find_environment

MODULE = '''
"""Adds numbers.

More about it.
"""

from envs import Environment, Rubric, Task, Taskset, single_turn
{extra}

def load_environment(size: int = 3, mode: str | None = None) -> Environment:
    tasks = Taskset({{"train": [Task.ask(str(i), "?") for i in range(size)]}})
    return Environment(tasks, single_turn(), Rubric({{}}), name="{name}")
'''


def make(folder: Path, *, extra: str = "", name: str = "", package: bool = False) -> Path:
    module = folder.name.replace("-", "_")
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{folder.name}"\nversion = "1.2.3"\n')
    file = folder / module / "__init__.py" if package else folder / f"{module}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(MODULE.format(extra=extra, name=name).lstrip())
    return folder


@pytest.mark.parametrize("package", [False, True])
def test_a_folder_is_loaded_by_its_path(tmp_path: Path, package: bool) -> None:
    folder = make(tmp_path / "my-sums", package=package)
    environment = load_environment(folder, size=5)
    assert (environment.name, environment.version, len(environment.tasks)) == ("my-sums", "1.2.3", 5)
    assert len(load_environment(str(folder)).tasks) == 3
    info = find_environment(str(folder))
    assert (info.summary, info.source, info.path) == ("Adds numbers.", "folder", folder)
    assert str(info.arguments).startswith("(size: int = 3, mode: str | None = None)")


def test_a_package_may_have_modules_of_its_own(tmp_path: Path) -> None:
    folder = make(tmp_path / "sums", extra="from .words import WORD", package=True)
    (folder / "sums" / "words.py").write_text("WORD = 'x'")
    assert load_environment(folder).name == "sums"


def test_a_module_may_step_aside_for_the_package_it_wraps(tmp_path: Path) -> None:
    folder = make(tmp_path / "upswing_json")
    folder = folder.rename(tmp_path / "json")
    environment = load_environment(folder)
    assert (environment.name, environment.version) == ("json", "1.2.3")


def test_two_folders_of_one_name_do_not_clash(tmp_path: Path) -> None:
    one = make(tmp_path / "a" / "sums", name="first")
    two = make(tmp_path / "b" / "sums", name="second")
    assert [load_environment(folder).name for folder in (one, two, one)] == ["first", "second", "first"]
    assert find_environment(one).function() is find_environment(one).function(), "imported once"


def test_a_bare_name_is_a_folder_only_if_it_holds_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "sums")
    assert load_environment("sums").version == "1.2.3"
    (tmp_path / "output").mkdir()
    with pytest.raises(ConfigError, match="unknown environment 'output'"):
        load_environment("output")
    with pytest.raises(ConfigError, match=r"output is no environment: expected output\.py or output/__init__\.py"):
        load_environment("./output")


def test_arguments_are_checked_against_the_signature(tmp_path: Path) -> None:
    folder = make(tmp_path / "sums")
    with pytest.raises(ConfigError) as caught:
        load_environment(folder, siz=3)
    assert str(caught.value) == (
        "environment 'sums' has no argument 'siz'; did you mean 'size'?; "
        "its arguments: size: int = 3, mode: str | None = None"
    )
    with pytest.raises(ConfigError, match="argument 'size' is 'many'"):
        load_environment(folder, size="many")


def test_what_is_missing_is_named_with_the_way_to_install_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "sums", extra="import a_module_that_nobody_has")
    with pytest.raises(ConfigError) as caught:
        load_environment(folder)
    assert str(caught.value) == (
        "environment 'sums' needs the module 'a_module_that_nobody_has', which is not installed; "
        f"install what it needs with `pip install {folder}`"
    )
    broken = make(tmp_path / "broken", extra="1 / 0")
    for _ in range(2):  # a module that failed is not taken for loaded
        with pytest.raises(ZeroDivisionError):
            load_environment(broken)


def test_a_folder_must_have_the_function_and_it_must_return_an_environment(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="has no function 'load_environment'"):
        load_environment(empty)
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "wrong.py").write_text("def load_environment(): return 3")
    with pytest.raises(ConfigError, match="load_environment of environment 'wrong' returned 3; expected an Environ"):
        load_environment(wrong)
    (wrong / "pyproject.toml").write_text("[tool.x]\n")
    with pytest.raises(ConfigError, match=r"wrong/pyproject\.toml is no project file"):
        load_environment(wrong)


def test_an_unknown_name_comes_with_close_ones() -> None:
    with pytest.raises(ConfigError, match="unknown environment 'wordel'; did you mean 'wordle'"):
        load_environment("wordel")


def test_references_to_a_hub_are_not_available_yet() -> None:
    with pytest.raises(ConfigError, match="references to a hub, owner/name@range, are not available in this version"):
        load_environment("someone/sums@>=1.0")
    with pytest.raises(ConfigError, match=r"no folder .*/nowhere/at/all; expected a folder"):
        load_environment("/nowhere/at/all")


def test_what_comes_with_upswing_is_listed_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "sums", extra="import a_module_that_nobody_has")
    (tmp_path / "__pycache__").mkdir()
    monkeypatch.setattr(envs.resolve, "LIBRARY", tmp_path)
    (info,) = [info for info in list_environments() if info.source == "bundled"]
    assert (info.name, info.summary, info.version) == ("sums", "Adds numbers.", "1.2.3")


def test_the_bundled_environments_are_there() -> None:
    bundled = {info.name: info for info in list_environments() if info.source == "bundled"}
    assert {"reverse_text", "wordle"} <= set(bundled)
    assert all(info.summary and info.version for info in bundled.values())


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder like site-packages with one distribution that registers an environment, and one that does not."""
    module = MODULE.format(extra="", name="").lstrip()
    (tmp_path / "sums_package.py").write_text(module.replace("load_environment", "make_sums"))
    (tmp_path / "plain_package.py").write_text(module)
    info = tmp_path / "sums_package-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sums-package\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[upswing.environments]\nsums = sums_package:make_sums\n")
    (info / "RECORD").write_text("sums_package.py,,\n")
    return tmp_path


def test_installed_packages_are_found_in_a_fresh_process(installed: Path) -> None:
    code = """
    from envs import list_environments, load_environment
    (info,) = [info for info in list_environments() if info.source == "installed"]
    print(info.name, info.summary, info.version, info.arguments.parameters["size"].default)
    environment = load_environment("sums", size=2)
    print(environment.name, environment.version, len(environment.tasks))
    environment = load_environment("plain_package")
    print(environment.name, environment.version, len(environment.tasks))
    """
    path = os.pathsep.join([str(installed), str(Path(envs.__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["sums Adds numbers. 2.0 3", "sums 2.0 2", "plain_package  3"]


def test_the_signature_is_that_of_the_function() -> None:
    info = find_environment("reverse_text")
    assert isinstance(info.arguments, inspect.Signature)
