"""From a name to the environment: a folder, an installed package, or one that comes with Upswing."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from envs.environment import Environment
from envs.errors import ConfigError, MissingPackageError, unknown_name
from envs.signature import bind

ENTRY_POINTS = "upswing.environments"
LIBRARY = Path(__file__).parent / "library"

_FUNCTION = "load_environment"
_SOURCES = {".py", ".yaml", ".json", ".jsonl", ".csv", ".toml", ".md"}
_HUB = re.compile(r"[\w-]+/[\w.-]+(@\S+)?")


@dataclass(frozen=True)
class EnvironmentInfo:
    """An environment that can be loaded, known without running its code.

    Attributes:
        name: what to load it by.
        summary: the first line of its module's docstring.
        source: "bundled" (comes with Upswing), "installed" (a package on this Python) or "folder".
        path: its folder, or the file of an installed module.
        version: of its package; empty if it has none.
        target: for installed ones, `module:function`.
    """

    name: str
    summary: str
    source: Literal["bundled", "installed", "folder"]
    path: Path
    version: str = ""
    target: str = ""

    def function(self) -> Callable[..., Environment]:
        """Its `load_environment`, imported.

        Raises:
            MissingPackageError: if a package it needs is not installed.
            ConfigError: if it has no such function.
        """
        if self.source == "installed":
            module_name, _, function_name = self.target.partition(":")
            module = _importing(self, lambda: importlib.import_module(module_name))
        else:
            module, function_name = _importing(self, lambda: _module_from(self.path)), _FUNCTION
        found = getattr(module, function_name or _FUNCTION, None)
        if not callable(found):
            raise ConfigError(
                f"{module.__name__} ({self.path}) has no function '{function_name}'; "
                "expected `def load_environment(...) -> Environment`"
            )
        return found

    def forget(self) -> None:
        """Forgets its imported code, so that what is loaded next is what its files say then."""
        name = self.target.partition(":")[0] if self.source == "installed" else _module_name(self.path)
        for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[module]
        importlib.invalidate_caches()

    def files(self) -> list[Path]:
        """Its Python files and data files, for whoever wants to know when they change."""
        if self.path.is_file():
            return [self.path]
        return sorted(p for p in self.path.rglob("*") if p.suffix in _SOURCES and p.is_file())

    @property
    def arguments(self) -> inspect.Signature:
        """The signature of its `load_environment`; imports it."""
        return inspect.signature(self.function())


def load_environment(name: str | Path, /, **kwargs: Any) -> Environment:
    """The environment that `name` stands for, made with `kwargs`.

    Looked up in this order: a folder; a package that registers the name under the entry points
    "upswing.environments"; the environments that come with Upswing; an importable module with a `load_environment`.

    Args:
        name: for example "wordle", "./my_environment" or "my_package.my_environment".
        kwargs: arguments of its `load_environment`, checked by its annotations; and `rubric`, what to change about its
            rubric: `{"weights": {…}, "metrics": […]}` (see `envs.rubric_config.adjusted`).

    Raises:
        ConfigError: no such environment, an argument that does not fit, a package that is not installed.
    """
    info = find_environment(name)
    function = info.function()
    kind = f"environment '{info.name}'"
    changes = kwargs.pop("rubric", {}) if "rubric" not in info.arguments.parameters else {}
    environment = function(**bind(function, kwargs, kind))
    if not isinstance(environment, Environment):
        raise ConfigError(f"load_environment of {kind} returned {environment!r}; expected an Environment")
    environment = replace(environment, name=environment.name or info.name, version=environment.version or info.version)
    if not changes:
        return environment
    from envs.rubric_config import adjusted

    return adjusted(**bind(adjusted, {"environment": environment, **changes}, "env.rubric"))


def list_environments() -> list[EnvironmentInfo]:
    """The environments that can be loaded by a bare name, sorted by it. Runs none of their code."""
    found = {info.name: info for info in _bundled()}
    found.update((info.name, info) for info in _installed())
    return [found[name] for name in sorted(found)]


def find_environment(name: str | Path) -> EnvironmentInfo:
    """What `load_environment(name)` would load.

    Raises:
        ConfigError: if there is no such environment.
    """
    text = os.fspath(name)
    path = Path(text).expanduser()
    # A bare name may be that of some other folder in the working directory; one with a slash is meant as a path.
    is_path = os.sep in text or isinstance(name, Path) or text in (".", "..")
    if path.is_dir() and (is_path or _module_file(path) is not None):
        return _folder_info(path.resolve(), "folder")
    if is_path:
        hub = (
            " (references to a hub, owner/name@range, are not available in this version)"
            if _HUB.fullmatch(text)
            else ""
        )
        raise ConfigError(f"no folder {path.absolute()}{hub}; expected a folder with pyproject.toml and its module")
    known = {info.name: info for info in list_environments()}
    if text in known:
        return known[text]
    package = _package_info(text)
    if package is None:
        raise unknown_name("environment", text, known, "a folder is given as a path, like ./my_environment")
    return package


def _bundled() -> list[EnvironmentInfo]:
    folders = sorted(LIBRARY.iterdir()) if LIBRARY.is_dir() else []
    return [_folder_info(folder, "bundled") for folder in folders if (folder / "pyproject.toml").is_file()]


def _installed() -> list[EnvironmentInfo]:
    infos = []
    for point in metadata.entry_points(group=ENTRY_POINTS):
        spec = _find_spec(point.value.partition(":")[0])
        if spec is not None and spec.origin is not None:
            version = point.dist.version if point.dist is not None else ""
            path = Path(spec.origin)
            infos.append(EnvironmentInfo(point.name, _summary(path), "installed", path, version, point.value))
    return infos


def _package_info(name: str) -> EnvironmentInfo | None:
    """An importable module of this name that defines `load_environment`."""
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    spec = _find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    if f"def {_FUNCTION}(" not in path.read_text(encoding="utf-8"):
        return None
    distributions = metadata.packages_distributions().get(name.partition(".")[0], [])
    version = metadata.version(distributions[0]) if distributions else ""
    return EnvironmentInfo(name, _summary(path), "installed", path, version, f"{name}:{_FUNCTION}")


def _find_spec(module: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a parent package that does not exist
        return None


def _folder_info(folder: Path, source: Literal["bundled", "folder"]) -> EnvironmentInfo:
    file = _module_file(folder)
    if file is None:
        name = folder.name.replace("-", "_")
        raise ConfigError(f"{folder} is no environment: expected {name}.py or {name}/__init__.py in it")
    project = folder / "pyproject.toml"
    version = ""
    if project.is_file():
        try:
            version = str(tomllib.loads(project.read_text(encoding="utf-8"))["project"].get("version", ""))
        except (tomllib.TOMLDecodeError, KeyError) as error:
            raise ConfigError(f"{project} is no project file: {error!r}; expected a [project] table") from None
    return EnvironmentInfo(folder.name, _summary(file), source, folder, version)


def _module_file(folder: Path) -> Path | None:
    """`NAME.py` or `NAME/__init__.py`, after the folder; else `upswing_NAME…`, where a package has the name already."""
    name = folder.resolve().name.replace("-", "_")
    for module in (name, f"upswing_{name}"):
        for file in (folder / f"{module}.py", folder / module / "__init__.py"):
            if file.is_file():
                return file
    return None


def _summary(path: Path) -> str:
    try:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except SyntaxError as error:
        return f"(cannot be read: {error})"
    return (docstring or "").partition("\n")[0]


def _module_name(folder: Path) -> str:
    file = _module_file(folder)
    assert file is not None
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return f"upswing_environment_{file.parent.name if file.stem == '__init__' else file.stem}_{digest}"


def _module_from(folder: Path) -> ModuleType:
    """The module of an environment folder, under a name that no package has; imported once per process."""
    file, name = _module_file(folder), _module_name(folder)
    assert file is not None
    if name in sys.modules:
        return sys.modules[name]
    search = [str(file.parent)] if file.stem == "__init__" else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=search)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _importing(info: EnvironmentInfo, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except ModuleNotFoundError as error:
        wanted = info.path if info.source != "installed" else info.target.partition(".")[0].partition(":")[0]
        raise MissingPackageError(
            f"environment '{info.name}' needs the module '{error.name}', which is not installed; "
            f"install what it needs with `pip install {wanted}`"
        ) from error
