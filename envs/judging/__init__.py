"""Another model as a reward function."""

from envs.judging.criteria import Criterion, read_criteria, response_format
from envs.judging.reward import judge

__all__ = ["Criterion", "judge", "read_criteria", "response_format"]
