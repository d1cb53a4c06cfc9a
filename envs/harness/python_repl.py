"""The model works in a Python that keeps its variables, inside a sandbox."""

from collections.abc import Callable, Sequence
from typing import Any

from envs.environment import Harness
from envs.harness.hooks import Hooks
from envs.harness.sandboxed import in_sandbox
from envs.harness.tool_use import ToolSource, tool_use
from envs.rollout import Rollout
from envs.sandbox.pool import SandboxPool
from envs.sandbox.repl import PythonREPL
from envs.tools import Hidden, Tool, make_tool


async def python(code: str, repl: Hidden[PythonREPL]) -> str:
    """Runs Python code and returns what it prints, the value of a last expression, or the traceback. Variables,
    functions and imports stay for the next call.

    Args:
        code: what to run.
    """
    return await repl.run(code) or "[no output]"


def python_repl(
    pool: SandboxPool,
    *,
    max_turns: int,
    tools: Sequence[Tool | ToolSource | Callable[..., Any]] = (),
    hooks: Sequence[Hooks] = (),
    max_chars: int = 20_000,
) -> Harness:
    """A harness like `tool_use` whose tool `python` is a live interpreter in a sandbox of the rollout's own.

    `rollout.state.sandbox` and `rollout.state.repl` are there for `hooks`, for further `tools`, and gone when reward
    functions run: an `on_stop` takes down what they need. A call takes at most `pool.limits.wall` seconds.

    Args:
        pool: where sandboxes come from.
        max_turns: the most completions.
        tools: further ones.
        hooks: what happens before, between and after the turns, with the sandbox there.
        max_chars: outputs longer than this are cut, with a notice.
    """

    def begin(rollout: Rollout) -> None:
        rollout.state.repl = PythonREPL(rollout.state.sandbox)

    tool = make_tool(python, timeout=pool.limits.deadline, max_chars=max_chars)
    return tool_use([tool, *tools], max_turns=max_turns, hooks=[in_sandbox(pool), Hooks(on_setup=begin), *hooks])
