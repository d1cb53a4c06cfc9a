"""Ways of driving a model through a task, one file each."""

from envs.harness.bash_agent import bash_agent
from envs.harness.best_of import best_of, majority
from envs.harness.hooks import Hooks
from envs.harness.multi_turn import multi_turn
from envs.harness.python_repl import python_repl
from envs.harness.sandboxed import in_sandbox
from envs.harness.self_play import game_score, self_play
from envs.harness.simulated_user import simulated_user
from envs.harness.single_turn import single_turn
from envs.harness.tool_use import tool_use

__all__ = [
    "Hooks",
    "bash_agent",
    "best_of",
    "game_score",
    "in_sandbox",
    "majority",
    "multi_turn",
    "python_repl",
    "self_play",
    "simulated_user",
    "single_turn",
    "tool_use",
]
