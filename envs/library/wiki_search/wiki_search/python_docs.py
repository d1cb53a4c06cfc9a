"""The documentation that every installation has: docstrings and signatures of the standard library and of NumPy.

The standard library is read from its source, importing nothing (some modules open windows or browsers). NumPy is
imported: much of its documentation is attached to compiled functions.
"""

import ast
import importlib
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .pages import Page, Section, page_of, rst_sections


class Entry(NamedTuple):
    """One documented function, class or method.

    Attributes:
        name: full name, like "heapq.nlargest" or "collections.Counter.most_common".
        module: the public module that defines it.
        kind: "function", "class" or "method".
        signature: as a call, like "heapq.nlargest(n, iterable, key=None)".
        defaults: Python source of the default value of each parameter whose default is a literal.
        doc: the docstring, without indentation.
    """

    name: str
    module: str
    kind: str
    signature: str
    defaults: Mapping[str, str]
    doc: str


SIGNATURE = "Signature"
DESCRIPTION = "Description"

# What some distributions of Python come without, and modules that are about other platforms or Python itself.
_LEFT_OUT = {"antigravity", "distutils", "ensurepip", "idlelib", "lib2to3", "msilib", "test", "this", "tkinter"}
_LEFT_OUT |= {"turtle", "turtledemo", "nt", "ntpath", "nturl2path", "pydoc_data", "sre_compile", "sre_constants"}
_LEFT_OUT |= {"sre_parse", "winreg", "__main__", "tests", "__pycache__"}

_NUMPY = (
    *("numpy", "numpy.linalg", "numpy.fft", "numpy.random", "numpy.strings", "numpy.char", "numpy.ma", "numpy.rec"),
    *("numpy.polynomial", "numpy.polynomial.polynomial", "numpy.polynomial.chebyshev", "numpy.polynomial.hermite"),
    *("numpy.polynomial.hermite_e", "numpy.polynomial.laguerre", "numpy.polynomial.legendre", "numpy.testing"),
    *("numpy.lib", "numpy.lib.stride_tricks", "numpy.lib.format", "numpy.lib.scimath", "numpy.exceptions"),
)


def versions() -> str:
    """What the documentation depends on."""
    return f"python-{'.'.join(map(str, sys.version_info[:3]))} numpy-{importlib.import_module('numpy').__version__}"


def entries() -> list[Entry]:
    """All of them, in the order of their names."""
    return sorted([*_standard_library(), *_numpy()])


def pages_of(all_entries: Iterable[Entry], most_chars: int) -> list[Page]:
    """A page for each function and class; a class has a section for each of its methods."""
    sections: dict[str, list[Section]] = {}
    for entry in sorted(all_entries, key=lambda e: (e.kind == "method", e.name)):
        if entry.kind == "method":
            owner, _, method = entry.name.rpartition(".")
            if owner in sections:
                sections[owner].append(Section(method, f"{entry.signature}\n\n{entry.doc}"))
        else:
            own = [Section(SIGNATURE, entry.signature), *rst_sections(entry.doc, DESCRIPTION)]
            sections[entry.name] = [section for section in own if section.text.strip()]
    return [page_of(title, found, most_chars) for title, found in sorted(sections.items())]


# The standard library, by its source


def _standard_library() -> Iterator[Entry]:
    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f.isidentifier() and not f.startswith("_") and f not in _LEFT_OUT)
        for file in sorted(files):
            path = Path(folder, file)
            parts = path.relative_to(root).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if path.suffix == ".py" and parts and _is_public(parts):
                yield from _module(".".join(parts), path.read_text("utf-8", errors="replace"))


def _is_public(parts: tuple[str, ...]) -> bool:
    hidden = any(part.startswith("_") or part in _LEFT_OUT for part in parts)
    return parts[0] in sys.stdlib_module_names and not hidden


def _module(module: str, source: str) -> Iterator[Entry]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in somebody else's strings
        tree = ast.parse(source)
    public = _all(tree)
    seen = set[str]()
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name in seen:
            continue
        if node.name in public if public is not None else not node.name.startswith("_"):
            seen.add(node.name)
            yield from _class(node, module) if isinstance(node, ast.ClassDef) else _function(node, module, module)


def _all(tree: ast.Module) -> set[str] | None:
    """The names of `__all__`, as far as it is written out."""
    names = None
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__":
            values = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            names = (names or set()) | set(values)
    return names


def _class(node: ast.ClassDef, module: str) -> Iterator[Entry]:
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    # A decorator may change what its class can be called with, a dataclass for one.
    made = next((n for n in methods if n.name == "__init__"), None) if not node.decorator_list else None
    doc = inspect.cleandoc(ast.get_docstring(node) or "")
    found = [e for m in methods if not m.name.startswith("_") for e in _function(m, f"{module}.{node.name}", module)]
    if doc or found:
        name = f"{module}.{node.name}"
        arguments = "" if made is None else _without_first(ast.unparse(made.args))
        yield Entry(name, module, "class", f"{name}({arguments})", {} if made is None else _defaults(made), doc)
        yield from {entry.name: entry for entry in found}.values()


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, owner: str, module: str) -> Iterator[Entry]:
    doc = inspect.cleandoc(ast.get_docstring(node) or "")
    decorators = {ast.unparse(d) for d in node.decorator_list}
    if not doc or decorators - {"classmethod", "staticmethod"}:
        return  # other decorators may change the signature
    method = owner != module
    arguments = ast.unparse(node.args)
    shown = _without_first(arguments) if method and "staticmethod" not in decorators else arguments
    name = f"{owner}.{node.name}"
    yield Entry(name, module, "method" if method else "function", f"{name}({shown})", _defaults(node), doc)


def _without_first(arguments: str) -> str:
    """Arguments without `self` or `cls`."""
    return re.sub(r"^\w+(, /)?(, |$)", "", arguments)


def _defaults(node: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, str]:
    positional = [*node.args.posonlyargs, *node.args.args]
    pairs: list[tuple[ast.arg, ast.expr | None]] = []
    pairs += zip(positional[len(positional) - len(node.args.defaults) :], node.args.defaults, strict=True)
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return {arg.arg: ast.unparse(value) for arg, value in pairs if value is not None and _is_literal(value)}


def _is_literal(value: ast.expr) -> bool:
    try:
        return re.fullmatch("[ -~]+", repr(ast.literal_eval(value))) is not None
    except ValueError:
        return False


# NumPy, by its objects


def _numpy() -> Iterator[Entry]:
    seen = set[int]()
    for module_name in _NUMPY:
        module = importlib.import_module(module_name)
        for name in sorted(getattr(module, "__all__", dir(module))):
            found = getattr(module, name)
            home = getattr(found, "__module__", None) or module_name
            ours = home == module_name or home.startswith(f"{module_name}._") or type(found).__name__ == "ufunc"
            if name.startswith("_") or not callable(found) or id(found) in seen or not ours:
                continue
            if getattr(found, "__name__", name) != name:
                continue  # another name of something
            seen.add(id(found))
            kind = "class" if inspect.isclass(found) else "function"
            yield from _object(found, f"{module_name}.{name}", module_name, kind)
            if inspect.isclass(found):
                for method in sorted(m for m in vars(found) if not m.startswith("_")):
                    call = getattr(found, method)
                    if inspect.isroutine(call) and callable(call):
                        yield from _object(call, f"{module_name}.{name}.{method}", module_name, "method")


def _object(found: Any, name: str, module: str, kind: str) -> Iterator[Entry]:
    doc = inspect.cleandoc(found.__doc__ or "")
    if not doc:
        return
    try:
        signature = inspect.signature(found)
    except ValueError:  # compiled, and silent about its arguments
        first, _, rest = doc.partition("\n")
        shown, defaults = (first, {}) if "(" in first else (f"{name}(…)", {})
        doc = rest.strip() if "(" in first else doc
    else:
        parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
        plain = signature.replace(
            parameters=[p.replace(annotation=p.empty) for p in parameters], return_annotation=signature.empty
        )
        shown = re.sub(" at 0x[0-9a-f]+", "", f"{name}{plain}")  # where an object lies differs from process to process
        literal = {
            p.name: repr(p.default) for p in parameters if type(p.default) in (bool, int, float, str, type(None), tuple)
        }
        defaults = {key: value for key, value in literal.items() if re.fullmatch("[ -~]+", value) and "<" not in value}
    # Some repeat their signature before their description.
    short = name.rpartition(".")[2]
    doc = re.sub(rf"^(\w+\.)?{re.escape(short)}\([^\n]*(\n[^\n]+)*\n\n", "", doc)
    yield Entry(name, module, kind, shown, defaults, doc)
