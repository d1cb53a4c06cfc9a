"""Ways of driving a model through a task, one file each."""

from envs.harness.bash_agent import bash_agent
from envs.harness.hooks import Hooks
from envs.harness.multi_turn import multi_turn
from envs.harness.python_repl import python_repl
from envs.harness.sandboxed import in_sandbox
from envs.harness.single_turn import single_turn
from envs.harness.tool_use import tool_use

__all__ = ["Hooks", "bash_agent", "in_sandbox", "multi_turn", "python_repl", "single_turn", "tool_use"]
