"""Ways of driving a model through a task, one file each."""

from envs.harness.hooks import Hooks
from envs.harness.multi_turn import multi_turn
from envs.harness.single_turn import single_turn
from envs.harness.tool_use import tool_use

__all__ = ["Hooks", "multi_turn", "single_turn", "tool_use"]
