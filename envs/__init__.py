"""Environments for language models: write one, then evaluate, make data, train, tune prompts and monitor with it.

Names load on first use, so that `import envs` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.clients.base import Client
    from envs.clients.openai import OpenAIClient
    from envs.clients.scripted import ScriptedClient
    from envs.code_score import code_tests
    from envs.environment import Environment, Harness
    from envs.errors import ConfigError, ContextLengthError, InfrastructureError, TasksetError, UpswingError
    from envs.evaluation import Evaluation, evaluate, paired_gain
    from envs.harness import (
        Hooks,
        bash_agent,
        best_of,
        game_score,
        in_sandbox,
        majority,
        multi_turn,
        python_repl,
        self_play,
        simulated_user,
        single_turn,
        tool_use,
    )
    from envs.judging import Criterion, judge
    from envs.math_score import math_equal
    from envs.mcp_tools import MCPTools
    from envs.parsers import boxed, code_block, exact, json_value, matches, regex, well_formed, xml_tag
    from envs.price import Price
    from envs.record import Journal
    from envs.rescoring import rescore
    from envs.resolve import EnvironmentInfo, list_environments, load_environment
    from envs.rollout import Rollout, run_group, run_task
    from envs.rubric import Rubric, scores
    from envs.sandbox import Bubblewrap, Limits, Sandbox, SandboxPool, TrustedSubprocess
    from envs.seeds import derive_seed
    from envs.statistics import Interval
    from envs.taskset import Taskset
    from envs.taskset_sources import TaskJournal
    from envs.tools import Hidden, Tool, make_tool
    from envs.types import (
        Completion,
        Failure,
        FunctionCall,
        Message,
        Sampling,
        Task,
        ToolCall,
        ToolSchema,
        Trajectory,
        Turn,
    )
    from envs.validation import Check, validate

_HOMES = {
    "envs.clients.base": ["Client"],
    "envs.clients.openai": ["OpenAIClient"],
    "envs.clients.scripted": ["ScriptedClient"],
    "envs.code_score": ["code_tests"],
    "envs.environment": ["Environment", "Harness"],
    "envs.errors": ["ConfigError", "ContextLengthError", "InfrastructureError", "TasksetError", "UpswingError"],
    "envs.evaluation": ["Evaluation", "evaluate", "paired_gain"],
    "envs.harness": [
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
    ],
    "envs.judging": ["Criterion", "judge"],
    "envs.math_score": ["math_equal"],
    "envs.parsers": ["boxed", "code_block", "exact", "json_value", "matches", "regex", "well_formed", "xml_tag"],
    "envs.price": ["Price"],
    "envs.mcp_tools": ["MCPTools"],
    "envs.record": ["Journal"],
    "envs.rescoring": ["rescore"],
    "envs.resolve": ["EnvironmentInfo", "list_environments", "load_environment"],
    "envs.rollout": ["Rollout", "run_group", "run_task"],
    "envs.rubric": ["Rubric", "scores"],
    "envs.seeds": ["derive_seed"],
    "envs.statistics": ["Interval"],
    "envs.taskset": ["Taskset"],
    "envs.taskset_sources": ["TaskJournal"],
    "envs.sandbox": ["Bubblewrap", "Limits", "Sandbox", "SandboxPool", "TrustedSubprocess"],
    "envs.tools": ["Hidden", "Tool", "make_tool"],
    "envs.validation": ["Check", "validate"],
    "envs.types": [
        "Completion",
        "Failure",
        "FunctionCall",
        "Message",
        "Sampling",
        "Task",
        "ToolCall",
        "ToolSchema",
        "Trajectory",
        "Turn",
    ],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - grouped by what they are for
    # what an environment is made of
    "Environment",
    "Harness",
    "Rubric",
    "Task",
    "TaskJournal",
    "Taskset",
    # ways of driving a model
    "Hidden",
    "Hooks",
    "MCPTools",
    "Rollout",
    "Tool",
    "bash_agent",
    "best_of",
    "game_score",
    "in_sandbox",
    "majority",
    "make_tool",
    "multi_turn",
    "python_repl",
    "self_play",
    "simulated_user",
    "single_turn",
    "tool_use",
    # scoring
    "Criterion",
    "Price",
    "boxed",
    "code_block",
    "code_tests",
    "exact",
    "json_value",
    "judge",
    "matches",
    "math_equal",
    "regex",
    "scores",
    "well_formed",
    "xml_tag",
    # where code runs
    "Bubblewrap",
    "Limits",
    "Sandbox",
    "SandboxPool",
    "TrustedSubprocess",
    # running
    "Check",
    "Evaluation",
    "Interval",
    "Journal",
    "derive_seed",
    "evaluate",
    "paired_gain",
    "rescore",
    "run_group",
    "run_task",
    "validate",
    # finding
    "EnvironmentInfo",
    "list_environments",
    "load_environment",
    # talking to models
    "Client",
    "OpenAIClient",
    "ScriptedClient",
    # records
    "Completion",
    "Failure",
    "FunctionCall",
    "Message",
    "Sampling",
    "ToolCall",
    "ToolSchema",
    "Trajectory",
    "Turn",
    # errors
    "ConfigError",
    "ContextLengthError",
    "InfrastructureError",
    "TasksetError",
    "UpswingError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'envs' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
