"""The model works in a shell, inside a sandbox."""

from collections.abc import Callable, Sequence
from typing import Any

from envs.environment import Harness
from envs.harness.hooks import Hooks
from envs.harness.sandboxed import in_sandbox
from envs.harness.tool_use import ToolSource, tool_use
from envs.sandbox.base import Sandbox
from envs.sandbox.pool import SandboxPool
from envs.tools import Hidden, Tool, make_tool


async def bash(command: str, sandbox: Hidden[Sandbox]) -> str:
    """Runs a command in bash and returns its output. Each call is a new shell that starts in the working folder; files
    stay, and so do processes in the background.

    Args:
        command: what to run.
    """
    return (await sandbox.exec(["bash", "-c", command])).text() or "[no output]"


def bash_agent(
    pool: SandboxPool,
    *,
    max_turns: int,
    tools: Sequence[Tool | ToolSource | Callable[..., Any]] = (),
    hooks: Sequence[Hooks] = (),
    max_chars: int = 20_000,
) -> Harness:
    """A harness like `tool_use` whose tool `bash` runs commands in a sandbox of the rollout's own.

    `rollout.state.sandbox` is there for `hooks`, for further `tools`, and gone when reward functions run: an `on_setup`
    puts the task's files into it, an `on_stop` takes down what will be scored. A command takes at most
    `pool.limits.wall` seconds.

    Args:
        pool: where sandboxes come from.
        max_turns: the most completions.
        tools: further ones.
        hooks: what happens before, between and after the turns, with the sandbox there.
        max_chars: outputs longer than this are cut, with a notice.
    """
    tool = make_tool(bash, timeout=pool.limits.deadline, max_chars=max_chars)
    return tool_use([tool, *tools], max_turns=max_turns, hooks=[in_sandbox(pool), *hooks])
