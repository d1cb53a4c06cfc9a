"""Model families, by name and by the `model_type` of a checkpoint's `config.json`."""

from collections.abc import Mapping

from rl.models import gemma3, glm4_moe, gpt_oss, llama, qwen2, qwen3, qwen3_moe
from rl.models.family import Family

FAMILIES: Mapping[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (llama, qwen2, qwen3, qwen3_moe, gemma3, glm4_moe, gpt_oss)
}
