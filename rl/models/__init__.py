"""Model families, by name and by the `model_type` of a checkpoint's `config.json`."""

from collections.abc import Mapping

from rl.models import llama, qwen2, qwen3
from rl.models.family import Family

FAMILIES: Mapping[str, Family] = {family.name: family for family in (llama.FAMILY, qwen2.FAMILY, qwen3.FAMILY)}
